// Every schema of the library, in one place. The kernels register themselves in the other files of this folder.
//
// PATTERN below stands for the two views of one sparse (M, N) pattern, all int32:
//   ccol_indices (N + 1,), row_indices (nnz,)   column view; the order of `weight`
//   crow_indices (M + 1,), col_indices (nnz,)   row view
//   perm (nnz,)                                 weight[perm] is in the order of the row view
// WINDOW is how a convolution moves over images: kernel_size, stride and dilation of rows and columns, padding above,
// below, left and right. Its pattern has a row for each filter and a column for each tap (core/window.h).
#include <torch/library.h>

#define PATTERN "Tensor ccol_indices, Tensor row_indices, Tensor crow_indices, Tensor col_indices, Tensor perm"
#define NORM "float a, float b, float p"
#define WINDOW "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups"

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
  m.def("sparse_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? excitability, " PATTERN ", " NORM ", " WINDOW
        ") -> Tensor");
  m.def("sparse_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? excitability, " PATTERN
        ", " NORM ", " WINDOW ", bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");

  // Effective weights in row order, for inference; col_indices is int32, or int16 with the bits of unsigned numbers.
  m.def(
      "frozen_linear(Tensor input, Tensor weight, Tensor? bias, Tensor crow_indices, Tensor col_indices, int "
      "in_features) -> Tensor");

  // Values v (float64, in effective's order) and e that stand for effective weights, the inverse of the formula.
  // `excitability` holds e where it is given; `start` is what e has where no weight decides it.
  m.def("raw_values(Tensor effective, Tensor row_indices, int rows, " NORM
        ", bool variable, Tensor? excitability, "
        "float start, str name) -> (Tensor, Tensor)");

  // Patterns. `sound` says that check_pattern would find nothing, as in what these ops made: they then don't look.
  m.def("check_pattern(Tensor compressed, Tensor indices, int size, str compressed_name, str indices_name) -> ()");
  m.def(
      "transpose_pattern(Tensor compressed, Tensor indices, int size, *, bool sound=False) -> (Tensor, Tensor, "
      "Tensor)");
  // Float64 (8,): whole numbers that tell a pattern from others.
  m.def("pattern_mark(Tensor ccol_indices, Tensor row_indices) -> Tensor");

  // Patterns and weights from what users have. What is wrong with that is a ValueError or a TypeError, in their words.
  m.def(
      "check_view(Tensor compressed, Tensor indices, int segments, int size, str compressed_name, str indices_name) -> "
      "()");
  // Both views of indices of int32 or int64: the given one, the other one, and its entries' places in the given one.
  m.def(
      "both_views(Tensor compressed, Tensor indices, int segments, int size, str compressed_name, str indices_name) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The column view from ascending keys col * rows + row, int64.
  m.def("pattern_of_keys(Tensor keys, int rows, int cols) -> (Tensor, Tensor)");
  // Column view and weights: of the nnz largest of a matrix by magnitude, of equals the later in column order, or of
  // those that are not 0; of a CSR matrix.
  m.def("largest_connections(Tensor dense, int? nnz, str name) -> (Tensor, Tensor, Tensor)");
  m.def(
      "connections_of_csr(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor? bias, int rows, int cols) -> "
      "(Tensor, Tensor, Tensor)");

  // Rewiring. What is wrong with values is raised where no `status` is given, for which a GPU must be waited for. With
  // one, an int64 tensor (4,) that begins with 2^63 - 1 (see core/status.h), it is written there and the results are of
  // no use but safe to go on with, so nothing waits: writers leave everything as it was when a status tells of a
  // fault, and raise_fault raises what would have been.
  m.def("weakest(Tensor score, int k, *, Tensor(a!)? status=None) -> Tensor");
  m.def(
      "excise(Tensor ccol_indices, Tensor row_indices, Tensor dropped, int k, *, bool sound=False, "
      "Tensor(a!)? status=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "empty_positions(Tensor ccol_indices, Tensor row_indices, int rows, int k, int seed, int step, int layer, *, "
      "bool sound=False) -> Tensor");
  m.def(
      "replace_connections(Tensor ccol_indices, Tensor row_indices, int rows, Tensor dropped, Tensor keys, *, "
      "bool sound=False, Tensor(a!)? status=None) -> (Tensor, Tensor, Tensor)");
  // The plan of one: the column view of what stays when the k least important go, which is asked where connections are
  // to grow, and then all that is written. plan_excision: dropped, ccol_indices and row_indices of what stays, row and
  // column of what goes. plan_rewiring: both new views, source, row and column of what comes.
  m.def(
      "plan_excision(Tensor ccol_indices, Tensor row_indices, Tensor importance, int k, *, bool sound=False, "
      "Tensor(a!)? status=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "plan_rewiring(Tensor ccol_indices, Tensor row_indices, int rows, Tensor dropped, int k, Tensor keys, "
      "Tensor values, *, ScalarType dtype, bool sound=False, Tensor(a!)? status=None) -> (Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The root mean square of values, to ten binary digits, so that every device finds the same: float64 (); 1 for none.
  m.def("spread(Tensor values) -> Tensor");
  m.def("counter_normal(int n, int seed, int step, int layer, *, ScalarType dtype, Device device) -> Tensor");
  // Writers. Here `sound` says that source and fill came from replace_connections and fit each other.
  m.def("carry_(Tensor(a!) values, Tensor source, Tensor fill, *, bool sound=False, Tensor? status=None) -> ()");
  m.def("assign_(Tensor(a!) values, Tensor new_values, *, Tensor? status=None) -> ()");
  m.def("raise_fault(Tensor status) -> ()");
}
