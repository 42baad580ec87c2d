// Heads as views around an attention core.
#include "macgrad/nn/multi_head_attention.h"

#include "macgrad/autograd/ops.h"

namespace macgrad::nn {

namespace {

int64_t head_width(int64_t width, int64_t heads) {
  require(heads >= 1 && width % heads == 0,
          "[attention] width {} cannot be divided among {} heads; choose a divisor", width, heads);
  return width / heads;
}

}  // namespace

MultiHeadAttention::MultiHeadAttention(Module* parent, std::string name, int64_t width,
                                       int64_t heads, const AttentionSettings& settings,
                                       AttentionRole role, ModelRandom& random)
    : Module(parent, std::move(name)),
      q_proj(this, "q_proj", width, width, random),
      k_proj(this, "k_proj", width, width, random),
      v_proj(this, "v_proj", width, width, random),
      out_proj(this, "out_proj", width, width, random),
      heads_(heads),
      core_(make_attention_core(this, "core", settings,
                                {role, heads, head_width(width, heads), &random})) {}

Variable MultiHeadAttention::forward(const Variable& query, const Variable& memory,
                                     const Mask& mask, DecodeState* state) {
  const auto in_scope = scope();
  const int64_t C = query.size(2);
  // (B, L, C) -> (B, H, L, d), a view.
  const auto split_heads = [&](const Variable& x) {
    return transpose(reshape(x, Shape{x.size(0), x.size(1), heads_, C / heads_}), 1, 2);
  };
  Variable k, v;
  if (memory.defined()) {
    k = split_heads(k_proj.forward(memory)).named("k");
    v = split_heads(v_proj.forward(memory)).named("v");
  }
  const Variable q = split_heads(q_proj.forward(query)).named("q");
  const Variable out = core_->forward({q, k, v, mask, {}}, state);
  return in_scope.result(out_proj.forward(reshape(transpose(out, 1, 2), query.shape())));
}

}  // namespace macgrad::nn
