// The Python module dendnorm._C: loading it registers the ops of libdendnorm; itself it only says how it was built.
#include <pybind11/pybind11.h>

#include "core/norm.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Loads torch.ops.dendnorm and says how it was built.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = DENDNORM_VERSION;
        info["torch"] = DENDNORM_TORCH_VERSION;
        info["compiler"] = DENDNORM_COMPILER;
        info["build_type"] = DENDNORM_BUILD_TYPE;
        const char* cuda = DENDNORM_CUDA_VERSION;
        if (*cuda != '\0') {
          info["cuda"] = cuda;
        } else {
          info["cuda"] = py::none();
        }
        return info;
      },
      "How this module was built: dendnorm's version, the versions of torch, compiler and CUDA (None: without).");
  m.def("cpu_capability", &dendnorm::cpu::capability, "The instruction set in use: 'default', 'avx2' or 'avx512'.");
  m.def(
      "excitability_start",
      [](double a, double b, double p, double degree) { return dendnorm::excitability_start({a, b, p}, degree); },
      "Where the excitability starts in a layer with this mean in-degree, for a gain of 1.");
}
