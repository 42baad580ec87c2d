// Products with Jacobians and Hessians, and gradients example by example, from grad() alone.
#pragma once

#include <functional>

#include "macgrad/autograd/engine.h"

namespace macgrad {

/// Jacobian-vector products: how each output moves, to first order, when the inputs move along
/// `directions` (of the inputs' shapes and dtypes; an undefined one is zero). The gradient of
/// Σ u·outputs is linear in u, and its derivative in u along the directions is the product
/// (reverse mode twice). Outputs that do not depend on the inputs give zeros. The graph stays.
Variables jvp(const Variables& outputs, const Variables& inputs, const Variables& directions);

/// Hessian-vector products of a scalar: per input Σ_j ∂²output/∂input∂input_j · direction_j, of its
/// shape. The graph stays.
Variables hvp(const Variable& output, const Variables& inputs, const Variables& directions);

/// Gradients of one example's loss after the other: result[p] is (examples, shape of inputs[p]).
/// `loss` runs the forward pass of one example alone, which costs one pass each and is right
/// whatever the model does with its batch. Inputs that a loss does not depend on get zeros.
Tensors per_example_gradients(int64_t examples, const std::function<Variable(int64_t)>& loss,
                              const Variables& inputs);

}  // namespace macgrad
