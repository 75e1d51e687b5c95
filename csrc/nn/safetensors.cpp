#include "nn/safetensors.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string_view>

#include "nn/replace_file.h"

namespace dendnorm::nn {
namespace {

using at::ScalarType;
using at::Tensor;

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and so must the machine be");

constexpr std::array<std::pair<std::string_view, ScalarType>, 10> kTypes{{{"F64", at::kDouble},
                                                                          {"F32", at::kFloat},
                                                                          {"F16", at::kHalf},
                                                                          {"BF16", at::kBFloat16},
                                                                          {"I64", at::kLong},
                                                                          {"I32", at::kInt},
                                                                          {"I16", at::kShort},
                                                                          {"I8", at::kChar},
                                                                          {"U8", at::kByte},
                                                                          {"BOOL", at::kBool}}};

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out << '\\' << c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[7];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out << escaped;
    } else {
      out << c;
    }
  }
  out << '"';
  return out.str();
}

// Just the JSON that such a header may hold: objects, strings, and arrays of whole numbers.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  template <class OnKey>
  void object(OnKey on_key) {
    expect('{');
    if (accept('}')) return;
    do {
      const std::string key = string();
      expect(':');
      on_key(key);
    } while (accept(','));
    expect('}');
  }

  std::vector<int64_t> numbers() {
    std::vector<int64_t> found;
    expect('[');
    if (accept(']')) return found;
    do {
      found.push_back(number());
    } while (accept(','));
    expect(']');
    return found;
  }

  std::string string() {
    expect('"');
    std::string found;
    while (true) {
      const char c = next();
      if (c == '"') return found;
      if (c != '\\') {
        found += c;
        continue;
      }
      const char escaped = next();
      switch (escaped) {
        case 'b': found += '\b'; break;
        case 'f': found += '\f'; break;
        case 'n': found += '\n'; break;
        case 'r': found += '\r'; break;
        case 't': found += '\t'; break;
        case 'u': code_point(found); break;
        default: found += escaped;
      }
    }
  }

  void end() {
    skip_space();
    check(at_ == text_.size(), "nothing after its header's object");
  }

  void check(bool good, const char* expected) const {
    TORCH_CHECK_VALUE(good, "path must name a sound safetensors file, with ", expected, ", got ", path_);
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  char next() {
    check(at_ < text_.size(), "a header that is whole");
    return text_[at_++];
  }

  bool accept(char wanted) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) { check(accept(wanted), "a header in JSON"); }

  int64_t number() {
    skip_space();
    check(at_ < text_.size() && '0' <= text_[at_] && text_[at_] <= '9', "whole numbers for sizes");
    int64_t value = 0;
    for (; at_ < text_.size() && '0' <= text_[at_] && text_[at_] <= '9'; ++at_) {
      check(value < INT64_MAX / 10 - 9, "sizes below 2^63 / 10");
      value = value * 10 + (text_[at_] - '0');
    }
    return value;
  }

  // \uXXXX as UTF-8; names outside the basic plane are never written that way by the usual writers.
  void code_point(std::string& to) {
    unsigned value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = next();
      const auto digit =
          std::string_view("0123456789abcdef").find(c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c);
      check(digit != std::string_view::npos, "escapes of four hexadecimal digits");
      value = value * 16 + static_cast<unsigned>(digit);
    }
    check(value < 0xD800 || value > 0xDFFF, "names without surrogate pairs");
    if (value < 0x80) {
      to += static_cast<char>(value);
    } else if (value < 0x800) {
      to += {static_cast<char>(0xC0 | value >> 6), static_cast<char>(0x80 | (value & 0x3F))};
    } else {
      to += {static_cast<char>(0xE0 | value >> 12), static_cast<char>(0x80 | (value >> 6 & 0x3F)),
             static_cast<char>(0x80 | (value & 0x3F))};
    }
  }

  std::string_view text_;
  const std::string& path_;
  std::size_t at_ = 0;
};

// One tensor of the header, copied out of the data.
Tensor read_tensor(HeaderReader& reader, std::string_view data) {
  std::string type;
  std::vector<int64_t> shape, range;
  reader.object([&](const std::string& key) {
    if (key == "dtype") {
      type = reader.string();
    } else {
      reader.check(key == "shape" || key == "data_offsets", "dtype, shape and data_offsets of each tensor");
      (key == "shape" ? shape : range) = reader.numbers();
    }
  });
  const ScalarType* found = nullptr;
  for (const auto& [name, candidate] : kTypes) {
    if (name == type) found = &candidate;
  }
  reader.check(found != nullptr, "tensors of the usual dtypes");
  reader.check(range.size() == 2 && range[0] <= range[1] && range[1] <= static_cast<int64_t>(data.size()),
               "data_offsets within the file");
  const int64_t bytes = range[1] - range[0];
  int64_t size = static_cast<int64_t>(c10::elementSize(*found));
  for (const int64_t length : shape) {
    reader.check(length == 0 || size <= INT64_MAX / length, "shapes that fit into memory");
    size *= length;
  }
  reader.check(size == bytes, "as many bytes as the shape asks for");
  Tensor tensor = at::empty(shape, *found);
  if (bytes > 0) std::memcpy(tensor.mutable_data_ptr(), data.data() + range[0], static_cast<std::size_t>(bytes));
  return tensor;
}

}  // namespace

void write_safetensors(const StateDict& tensors, const std::string& path) {
  std::vector<Tensor> plain;
  std::ostringstream header;
  header << '{';
  int64_t offset = 0;
  for (const auto& item : tensors) {
    const Tensor tensor = item.value().detach().cpu().contiguous();
    std::string_view type;
    for (const auto& [name, candidate] : kTypes) {
      if (candidate == tensor.scalar_type()) type = name;
    }
    TORCH_CHECK_TYPE(!type.empty(), item.key(), " must have a dtype that safetensors knows, got ",
                     tensor.scalar_type());
    const auto end = offset + static_cast<int64_t>(tensor.nbytes());
    header << (plain.empty() ? "" : ",") << quoted(item.key()) << ":{\"dtype\":\"" << type << "\",\"shape\":[";
    for (int64_t d = 0; d < tensor.dim(); ++d) header << (d > 0 ? "," : "") << tensor.size(d);
    header << "],\"data_offsets\":[" << offset << ',' << end << "]}";
    offset = end;
    plain.push_back(tensor);
  }
  header << '}';
  std::string text = header.str();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  const std::uint64_t length = text.size();

  std::vector<std::string_view> parts{{reinterpret_cast<const char*>(&length), sizeof length}, text};
  for (const Tensor& tensor : plain) {
    // Without entries there may be no memory.
    if (tensor.nbytes() > 0) parts.emplace_back(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  replace_file(path, parts);
}

StateDict parse_safetensors(const std::vector<char>& bytes, const std::string& path) {
  const std::string_view file(bytes.data(), bytes.size());
  std::uint64_t length = 0;
  if (file.size() >= sizeof length) std::memcpy(&length, file.data(), sizeof length);
  const bool whole = file.size() >= sizeof length && length <= file.size() - sizeof length;
  HeaderReader reader(whole ? file.substr(sizeof length, length) : std::string_view(), path);
  reader.check(whole, "its header");
  const std::string_view data = file.substr(sizeof length + length);
  StateDict tensors;
  reader.object([&](const std::string& name) {
    if (name == "__metadata__") {
      reader.object([&](const std::string&) { reader.string(); });
    } else {
      reader.check(!tensors.contains(name), "every name once");
      tensors.insert(name, read_tensor(reader, data));
    }
  });
  reader.end();
  return tensors;
}

}  // namespace dendnorm::nn
