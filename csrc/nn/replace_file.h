// A file that is replaced as a whole or not at all.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dendnorm::nn {

// Writes `parts`, one after the other, to a temporary file beside `path`, syncs it, renames it and syncs the folder:
// `path` holds the old file or the whole new one. A new file gets the mode that the process gives to files (its umask),
// another keeps the one it had. Throws c10::Error that names `path` and the system's reason; nothing is left over then.
void replace_file(const std::string& path, const std::vector<std::string_view>& parts);

}  // namespace dendnorm::nn
