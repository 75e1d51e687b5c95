// The safetensors file format: the length of a JSON header, the header, the tensors' bytes.
// https://github.com/huggingface/safetensors#format
#pragma once

#include <string>
#include <vector>

#include "nn/dendnorm.h"

namespace dendnorm::nn {

// `path` holds the old file or the whole new one: see replace_file.
void write_safetensors(const StateDict& tensors, const std::string& path);

// Throws c10::ValueError for anything that is not a sound file of this format; `path` is only for the message.
StateDict parse_safetensors(const std::vector<char>& bytes, const std::string& path);

}  // namespace dendnorm::nn
