// The Python module dendnorm._C: loading it registers the ops of libdendnorm; itself it says how it was built, gives
// numbers and names, and looks after a layer's tensors where Python would take as long as the product itself.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "core/members.h"
#include "core/scale.h"
#include "core/shares.h"
#include "cpu/dispatch.h"
#include "cuda/choose.h"

namespace py = pybind11;

namespace {

py::dict described(const dendnorm::cuda::Cost& cost) {
  constexpr const char* kLevels[] = {"shared", "l2", "memory"};
  py::dict result;
  result["seconds"] = cost.seconds;
  result["bytes"] = cost.bytes;
  result["level"] = kLevels[static_cast<int>(cost.level)];
  return result;
}

py::dict described(const dendnorm::cuda::ProductChoice& choice) {
  py::dict result = described(choice.cost);
  result["kernel"] = choice.slab ? "slab" : "gather";
  result["lanes"] = choice.lanes;
  return result;
}

// What the CUDA kernels would do, also where there are none.
py::dict cuda_plan(std::int64_t inputs, std::int64_t outputs, std::int64_t connections, std::int64_t samples,
                   int element, bool tf32, int processors, std::int64_t shared_bytes, std::int64_t l2_bytes,
                   double memory_rate) {
  if (inputs < 1 || outputs < 1 || connections < 0 || samples < 1 || processors < 1) {
    throw py::value_error("cuda_plan: sizes must be positive");
  }
  if (element != 2 && element != 4 && element != 8) {
    throw py::value_error("cuda_plan: element must be 2, 4 or 8 bytes, got " + std::to_string(element));
  }
  using dendnorm::cuda::Arithmetic;
  const Arithmetic arithmetic = element == 8   ? Arithmetic::kFloat64
                                : element == 2 ? Arithmetic::kSixteenBits
                                : tf32         ? Arithmetic::kTF32
                                               : Arithmetic::kFloat32;
  const dendnorm::cuda::StepPlan plan =
      dendnorm::cuda::plan_step(inputs, outputs, connections, samples, element, element == 8 ? 8 : 4, arithmetic,
                                {processors, shared_bytes, l2_bytes, memory_rate});
  py::dict result;
  result["forward"] = described(plan.forward);
  result["input gradient"] = described(plan.columns.product);
  result["weight gradient"] = described(plan.columns.gradient);
  result["weight gradient"]["kernel"] = plan.columns.fused ? "fused" : "sampled";
  result["weight gradient"]["lanes"] =
      plan.columns.fused ? plan.columns.product.lanes
                         : dendnorm::cuda::covering_lanes(samples, element, dendnorm::cuda::kMaxGatherLanes);
  result["forward"]["dense_seconds"] = plan.dense.forward;
  result["input gradient"]["dense_seconds"] = plan.dense.input_gradient;
  result["weight gradient"]["dense_seconds"] = plan.dense.weight_gradient;
  return result;
}

// Of what a layer kept of a tensor: where it lies, and how often it was written.
bool lies_at(PyObject* tensor, PyObject* address) {
  return PyLong_AsVoidPtr(address) == THPVariable_Unpack(tensor).data_ptr();
}
bool has_version(PyObject* tensor, PyObject* version) {
  return PyLong_AsLongLong(version) == static_cast<long long>(THPVariable_Unpack(tensor)._version());
}

// stamp_fits(buffers, source, seal), as row_view.py keeps them: source is None or (ccol_indices, row_indices, their
// versions, their addresses), seal is None or (pattern_mark, its address, its bytes). Without pybind11, which would
// take longer than all that is done here.
PyObject* stamp_fits(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static PyObject* const names[] = {PyUnicode_InternFromString("ccol_indices"),
                                    PyUnicode_InternFromString("row_indices")};
  if (count != 3 || !PyDict_Check(args[0])) {
    PyErr_SetString(PyExc_TypeError, "stamp_fits: must be given buffers, source and seal");
    return nullptr;
  }
  PyObject *source = args[1], *seal = args[2];
  if (source == Py_None) Py_RETURN_FALSE;
  for (int i = 0; i < 2; ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(source, i);
    if (PyDict_GetItem(args[0], names[i]) != tensor || !has_version(tensor, PyTuple_GET_ITEM(source, 2 + i)) ||
        !lies_at(tensor, PyTuple_GET_ITEM(source, 4 + i))) {
      Py_RETURN_FALSE;
    }
  }
  if (seal == Py_None) Py_RETURN_TRUE;
  PyObject *mark = PyTuple_GET_ITEM(seal, 0), *bytes = PyTuple_GET_ITEM(seal, 2);
  if (!lies_at(mark, PyTuple_GET_ITEM(seal, 1))) Py_RETURN_FALSE;
  const auto* memory = static_cast<const char*>(THPVariable_Unpack(mark).data_ptr());
  if (std::memcmp(memory, PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))) != 0) {
    Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

PyMethodDef kMethods[] = {
    {"stamp_fits", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(stamp_fits)), METH_FASTCALL,
     "Whether a layer's saved tensors are those that its row view was derived from, as they were then."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Loads torch.ops.dendnorm and says how it was built.";
  if (PyModule_AddFunctions(m.ptr(), kMethods) != 0) throw py::error_already_set();
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
  m.def("cpu_capability", &dendnorm::cpu::capability,
        "The instruction set in use: 'default', 'neon', 'avx2' or 'avx512'.");
  m.def(
      "excitability_start",
      [](double a, double b, double p, double degree, double deviation) {
        return dendnorm::excitability_start({a, b, p}, degree, deviation);
      },
      "Where the excitability starts in a layer with this mean in-degree, of values with this standard deviation.");
  m.def("value_deviation", &dendnorm::value_deviation,
        "Standard deviation of a fresh layer's values, for this mean in-degree and gain.");
  m.def(
      "norm_named",
      [](std::string_view name) {
        const dendnorm::Member member = dendnorm::member_named(name);
        return py::make_tuple(member.norm.a, member.norm.b, member.norm.p, member.variable);
      },
      "a, b, p and whether there is one e for each neuron, of a norm's name.");
  m.def(
      "name_of_norm",
      [](double a, double b, double p, bool variable, bool scales) {
        return dendnorm::name_of_member({a, b, p}, variable, scales);
      },
      "The name of a norm, or its exponents.");
  m.def("connections", &dendnorm::connections, "The number of connections that density or nnz asks for.");
  m.def("share_of", &dendnorm::share_of, "A share of a number, half to even.");
  m.def(
      "cuda_plan", &cuda_plan, py::arg("inputs"), py::arg("outputs"), py::arg("connections"), py::arg("samples"),
      py::arg("element") = 4, py::arg("tf32") = false, py::arg("processors") = 132, py::arg("shared_bytes") = 227 << 10,
      py::arg("l2_bytes") = 50 << 20, py::arg("memory_rate") = 3.35e12,
      "Which CUDA kernels a training step takes on such a device (an H100 unless told), with how many lanes, and what "
      "the cost model predicts for each: seconds, bytes of activations loaded, the level they come from, and seconds "
      "of a dense product.");
}
