// Random Maclaurin feature attention, backward, by recomputation. With G = [g_num, g_den],
// g_num = dO/den and g_den = -(dO·O)/den (0 where the denominator was floored):
// dΦ_q = G KVᵀ, R = Φ_qᵀ G, dΦ_k = V̄ Rᵀ, dV = Φ_k R. States KV and R first (rmfa_states.cu), then
// tiles of queries pull dq and tiles of keys dk and dv, with features made again chunk by chunk.
//
// Causal: a segment's block walks forward with KV for dq, another backward with R for dk and dv;
// the masked products inside a tile stand beside both. Keys before all queries see R whole. Shape
// letters: B batch, H heads, T queries (Tn), S keys, d head dimension, dv values. Equations:
// nn/README.md, RMFA.
#include "macgrad/cuda/backend.h"
#include "macgrad/cuda/rmfa_backward.cuh"

namespace macgrad::cuda {
namespace rmfa {
namespace {

template <class E>
void backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_valid,
              const Tensor& query_valid, const Tensor& omega, const Tensor& weight,
              const Tensor& out, const Tensor& den, const Tensor& grad, const RmfaArgs& args,
              const Tensor& dq, const Tensor& dk, const Tensor& dv, const Scratch& scratch) {
  Problem<E> p = make_problem<E>(q, k, v, key_valid, query_valid, omega, weight, args);
  const Cotangents<E> cotangents{Rows<const E>(out), Rows<const E>(grad), den.data<float>()};
  const Cut cut(p.map, int64_t{p.B} * p.H, p.Tn, p.S, p.causal);
  const Memory memory(scratch.data(), p.map, cut, p.B, p.H, p.Tn, p.key_valid, p.causal, true);
  prepare(p, args, memory);
  key_states(p, cut, memory.key_states);
  query_states(p, cotangents, cut, memory.query_states);
  const Gradients<E> gradients{Rows<E>(dq), Rows<E>(dk), Rows<E>(dv)};
  with_rounding<E>([&]<Rounding rounding>() {
    pull_gradients<E, rounding>(p, cotangents, cut, memory, gradients);
  });
}

}  // namespace
}  // namespace rmfa

void rmfa_backward(In q, In k, In v, In key_valid, In query_valid, In omega, In weight, In out,
                   In den, In grad, const RmfaArgs& args, Out dq, Out dk, Out dv, Scratch scratch) {
  const auto run = q->dtype() == DType::bfloat16 ? rmfa::backward<bfloat16> : rmfa::backward<float>;
  run(q, k, v, key_valid, query_valid, omega, weight, out, den, grad, args, dq, dk, dv, scratch);
}

Support rmfa_backward_supports(In q, In k, In v, In, In, In omega, In weight, In, In, In,
                               const RmfaArgs& args, Out, Out, Out, Scratch) {
  return rmfa::supports(q, k, v, omega, weight, args, true);
}

size_t rmfa_backward_scratch(In q, In k, In v, In key_valid, In, In omega, In weight, In, In, In,
                             const RmfaArgs& args, Out, Out, Out, Scratch) {
  const rmfa::Map map = rmfa::make_map(args, q, v, omega, weight);
  const int64_t B = q->size(0), H = q->size(1), Tn = q->size(2);
  const rmfa::Cut cut(map, B * H, Tn, k->size(2), args.causal);
  return rmfa::Memory(nullptr, map, cut, B, H, Tn, key_valid->defined(), args.causal, true).bytes;
}

}  // namespace macgrad::cuda
