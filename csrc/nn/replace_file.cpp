#include "nn/replace_file.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace dendnorm::nn {
namespace {

constexpr const char* kOwnFiles = "/proc/self/fd/";

// The temporary file: removed again unless it has become the file at `path`. Where the system has such, it is in no
// folder until it is whole, and goes with a process that is killed.
class Temporary {
 public:
  explicit Temporary(const std::string& path) : path_(path) {
    const std::size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    folder_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(folder_ >= 0, "in a readable and writable folder");
#ifdef O_TMPFILE
    if (::access(kOwnFiles, X_OK) == 0) file_ = ::open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
#endif
    // Not mkstemp, whose files are the owner's alone: only the system knows the umask without changing it.
    if (file_ < 0) {
      name_it([this](const char* name) {
        file_ = ::open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        return file_ >= 0;
      });
    }
  }

  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  ~Temporary() {
    if (file_ >= 0) ::close(file_);
    if (folder_ >= 0) ::close(folder_);
    if (exists_) ::unlink(name_.c_str());
  }

  void write(std::string_view data) {
    while (!data.empty()) {
      const ssize_t written = ::write(file_, data.data(), data.size());
      check(written >= 0 || errno == EINTR, "writable");
      if (written > 0) data.remove_prefix(static_cast<std::size_t>(written));
    }
  }

  void replace() {
    struct stat old;
    if (::stat(path_.c_str(), &old) == 0) check(::fchmod(file_, old.st_mode & 07777) == 0, "writable");
    check(::fsync(file_) == 0, "writable");
    if (!exists_) {
      const std::string self = kOwnFiles + std::to_string(file_);
      name_it(
          [&](const char* name) { return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name, AT_SYMLINK_FOLLOW) == 0; });
    }
    const int file = file_;
    file_ = -1;  // closed, whatever close says
    check(::close(file) == 0, "writable");
    check(std::rename(name_.c_str(), path_.c_str()) == 0, "a file that can be replaced");
    exists_ = false;
    // The rename itself must survive a power cut. Some file systems know no such thing.
    check(::fsync(folder_) == 0 || errno == EINVAL, "in a folder that can be synced");
  }

 private:
  // By the first name that nothing has.
  template <class F>
  void name_it(const F& created) {
    const std::string stem = path_ + "." + std::to_string(::getpid()) + ".";
    for (int i = 0; !exists_; ++i) {
      name_ = stem + std::to_string(i);
      exists_ = created(name_.c_str());
      if (!exists_) check(errno == EEXIST, "in a readable and writable folder");
    }
  }

  // Called while errno is that of what was checked.
  void check(bool good, const char* expected) const {
    TORCH_CHECK_VALUE(good, "path must be ", expected, ", got ", path_, ": ", std::strerror(errno));
  }

  const std::string& path_;
  std::string name_;
  int file_ = -1, folder_ = -1;
  bool exists_ = false;
};

}  // namespace

void replace_file(const std::string& path, const std::vector<std::string_view>& parts) {
  Temporary file(path);
  for (const std::string_view part : parts) file.write(part);
  file.replace();
}

}  // namespace dendnorm::nn
