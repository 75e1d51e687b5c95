// Every schema of the library, in one place. The kernels register themselves in the other files of this folder.
//
// PATTERN below stands for the two views of one sparse (M, N) pattern, all int32:
//   ccol_indices (N + 1,), row_indices (nnz,)   column view; the order of `weight`
//   crow_indices (M + 1,), col_indices (nnz,)   row view
//   perm (nnz,)                                 weight[perm] is in the order of the row view
#include <torch/library.h>

#define PATTERN "Tensor ccol_indices, Tensor row_indices, Tensor crow_indices, Tensor col_indices, Tensor perm"
#define NORM "float a, float b, float p"

TORCH_LIBRARY(dendnorm, m) {
  // The layer and its derivatives.
  m.def("sparse_linear(Tensor input, Tensor weight, Tensor? bias, Tensor? excitability, " PATTERN ", " NORM
        ") -> Tensor");
  m.def("sparse_linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? excitability, " PATTERN
        ", " NORM ", bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("effective_weight(Tensor weight, Tensor? excitability, " PATTERN ", " NORM ") -> Tensor");
  m.def("effective_weight_backward(Tensor grad, Tensor weight, Tensor? excitability, " PATTERN ", " NORM
        ", bool[2] output_mask) -> (Tensor, Tensor)");
  m.def("sampled_product(Tensor rows, Tensor columns, " PATTERN ") -> Tensor");

  // Patterns.
  m.def("check_pattern(Tensor compressed, Tensor indices, int size, str compressed_name, str indices_name) -> ()");
  m.def("transpose_pattern(Tensor compressed, Tensor indices, int size) -> (Tensor, Tensor, Tensor)");

  // Rewiring.
  m.def("weakest(Tensor score, int k) -> Tensor");
  m.def(
      "empty_positions(Tensor ccol_indices, Tensor row_indices, int rows, int k, int seed, int step, int layer) "
      "-> Tensor");
  m.def(
      "replace_connections(Tensor ccol_indices, Tensor row_indices, int rows, Tensor dropped, Tensor keys) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("counter_normal(int n, int seed, int step, int layer, *, ScalarType dtype, Device device) -> Tensor");
  m.def("carry_(Tensor(a!) values, Tensor source, Tensor fill) -> ()");
}
