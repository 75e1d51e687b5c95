// What a backward pass is asked for, and what follows from it for the kernels of every device.
#pragma once

namespace dendnorm {

struct Wanted {
  // The gradients that are asked for.
  bool input = false;
  bool weight = false;
  bool bias = false;
  bool excitability = false;
  // Whether those of a row's values (b != 0) or of its excitability (one for each row) need a sum over the row.
  bool values_by_row = false;
  bool excitability_by_row = false;

  // dC/dw of every connection, of which those of weight and excitability are made.
  bool values() const { return weight || excitability; }
  // By a pass over the rows, after that over the columns;
  bool rows_pass() const { return values() && (values_by_row || (excitability && excitability_by_row)); }
  // or inside the latter: dC/dv by one factor for each row, dC/de by one sum over all connections.
  bool finish() const { return weight && !rows_pass(); }
  bool dots() const { return excitability && !rows_pass(); }
  // Whether the pass over the columns uses the rows' factors.
  bool factors() const { return input || finish(); }
};

}  // namespace dendnorm
