// The op table. A row says once what an op is (inputs with their domain, a function on Variables,
// a naive reference, tolerances); op_table_test, fused_test, kernels_coverage_test, threads_test
// and the CUDA tests run it in their modes. A new op is a row in one of the op_cases_*.cpp files.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "macgrad/autograd/ops.h"
#include "macgrad/core/tensor.h"

namespace macgrad::testing {

struct OpInput {
  Shape shape;
  double low = -1.5;
  double high = 1.5;
  bool differentiable = true;
  std::vector<double> values = {};  // instead of random ones
};

using Values = std::vector<std::vector<double>>;
using Function = std::function<Variable(const Variables&)>;
using Reference = std::function<std::vector<double>(const Values&)>;
using GradientReference =
    std::function<Values(const Values& inputs, const std::vector<double>& cotangent)>;

struct OpCase {
  std::string name;  // of the row: "sum dims 0,2"
  std::string op;    // the function of autograd/ops.h or autograd/attention.h it exercises
  std::vector<OpInput> inputs;
  Function f;
  /// The result by definition, from all inputs in row-major order; absent where nothing naive is
  /// cheap.
  Reference reference = {};
  /// The gradients of Σ value·cotangent by definition, one list per differentiable input.
  GradientReference gradient_reference = {};
  /// Inputs of size n, for the odd sizes 0, 1, 63 and 100; absent: one size only. The sizes start
  /// at `smallest`.
  std::function<std::vector<OpInput>(int64_t n)> sized = {};
  int64_t smallest = 0;
  bool gradient = true;  // gradcheck and gradients between dtypes
  bool second = true;    // second order as well
  /// Central differences can be taken: not next to infinities, jumps, or values so large that a
  /// step is lost in rounding.
  bool numeric = true;
  bool fused = false;  // has a composite to be compared with
  bool bfloat16 = true;
  bool expandable = true;  // inputs may be expanded along dimension 0 (stride 0)
  // Largest |difference| over (1 + largest |value|), values and gradients.
  double tol64 = 1e-12;
  double tol32 = 4e-6;
  double tol16 = 4e-2;
};

using OpCases = std::vector<OpCase>;

/// A row with every other setting at its default.
OpCase simple(const std::string& name, const std::string& op, std::vector<OpInput> inputs,
              Function f, Reference reference = {});

/// Every row.
const OpCases& op_cases();

void add_elementwise_cases(OpCases& cases);
void add_reduce_cases(OpCases& cases);
void add_matmul_cases(OpCases& cases);
void add_shape_cases(OpCases& cases);
void add_index_cases(OpCases& cases);
void add_row_cases(OpCases& cases);
void add_attention_cases(OpCases& cases);
void add_extreme_cases(OpCases& cases);

/// Random values in [low, high), different for each input, the same for every dtype (rounded to
/// it). Contiguous.
Tensors make_inputs(const std::vector<OpInput>& inputs, DType dtype);
/// Tensors that rows make themselves (masks, indices, draws) go where the inputs of the row that is
/// being evaluated are; the helpers below do so.
Tensor placed(const Tensor& t);
/// Standard-normal-like values that every floating dtype holds exactly, from `draw` alone.
Tensor exact_values(const Shape& shape, uint32_t draw, DType dtype);
/// -1 and +1.
Tensor exact_signs(const Shape& shape, uint32_t draw, DType dtype);
/// True with probability 3/4, and always at the first place of a row.
Tensor random_mask(const Shape& shape, uint32_t draw);
Tensor random_index(const Shape& shape, int64_t below, uint32_t draw);

struct Evaluation {
  Tensor value;
  Tensors gradients;  // of Σ value·cotangent, one a differentiable input
  Tensors second;     // of Σ gradients·weights, for the inputs and the cotangent
};
/// Runs a row; order 0 makes the value, 1 the gradients, 2 the second derivatives.
Evaluation evaluate(const OpCase& row, const Tensors& inputs, int order);
/// The cotangent that evaluate() uses for a result like `value`.
Tensor cotangent_of(const Tensor& value);
/// The same for any function; input i asks for a gradient where wanted[i].
Evaluation evaluate(const std::function<Variable(const Variables&)>& f, const Tensors& inputs,
                    const std::vector<bool>& wanted, int order);

/// Largest |a - b| over (1 + largest |b|); infinite where only one side is NaN.
double difference(const Tensor& a, const Tensor& b);
/// The largest difference of two evaluations and where it is.
struct Worst {
  double value = 0;
  std::string where;
};
Worst compare(const Evaluation& got, const Evaluation& expected);

/// The same values in other memory: last two dimensions transposed, every second element.
Tensor strided(const Tensor& t);

double tolerance(const OpCase& row, DType dtype);

/// While alive, kernels run on `count` threads. Rows are tiny: a team of threads for each would
/// cost more than the arithmetic; threads_test looks at the others.
class Threads {
 public:
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int previous_;
};

}  // namespace macgrad::testing
