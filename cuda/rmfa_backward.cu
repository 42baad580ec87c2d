// Random Maclaurin feature attention, backward, by recomputation. With G = [g_num, g_den],
// g_num = dO/den and g_den = -(dO·O)/den (0 where the denominator was floored):
// dΦ_q = G KVᵀ, R = Φ_qᵀ G, dΦ_k = V̄ Rᵀ, dV = Φ_k R. States KV and R first (rmfa_states.cu), then
// tiles of queries pull dq and tiles of keys dk and dv, with features made again chunk by chunk.
//
// Causal: a segment's block walks forward with KV for dq, another backward with R for dk and dv;
// the masked products inside a tile stand beside both. Keys before all queries see R whole. Shape
// letters: B batch, H heads, T queries (Tn), S keys, d head dimension, dv values. Equations:
// nn/README.md, RMFA.
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda {
namespace rmfa {
namespace {

template <class E>
void backward(const RmfaBackward& x) {
  Problem<E> p = make_problem<E>(x.in);
  const Cotangents<E> cotangents{Rows<const E>(x.out), Rows<const E>(x.grad), x.den->data<float>()};
  const Cut cut(p.map, int64_t{p.B} * p.H, p.Tn, p.S, p.causal);
  const Memory memory(x.scratch.data(), p.map, cut, p.B, p.H, p.Tn, p.key_valid, p.causal, true);
  prepare(p, x.in.args, memory);
  key_states(p, cut, memory.key_states);
  query_states(p, cotangents, cut, memory.query_states);
  const Gradients<E> gradients{Rows<E>(x.dq), Rows<E>(x.dk), Rows<E>(x.dv)};
  with_rounding<E>([&]<Rounding rounding>() {
    pull_gradients<E, rounding>(p, cotangents, cut, memory, gradients);
  });
}

}  // namespace
}  // namespace rmfa

void rmfa_backward(const RmfaBackward& x) {
  if (x.in.q->dtype() == DType::bfloat16) {
    rmfa::backward<bfloat16>(x);
  } else {
    rmfa::backward<float>(x);
  }
}

Support rmfa_backward_supports(const RmfaOperands& in) {
  return rmfa::supports(in, true);
}

size_t rmfa_backward_scratch(const RmfaOperands& in) {
  return rmfa::scratch_bytes(in, true);
}

}  // namespace macgrad::cuda
