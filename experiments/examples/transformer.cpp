// examples/transformer: trains an encoder with RMFA on an associative recall task
//
// A sequence is a query and 16 (key, value) pairs in random order, one token each; the class is the
// value of the queried key, one of four. Attention that is close to a mean cannot tell the pairs
// apart: the paper's form (nn::paper_attention()) reaches 0.80, the defaults used here 0.99.
#include <macgrad/nn.h>

using namespace macgrad;

constexpr int64_t kKeys = 16, kValues = 4, kLength = 1 + kKeys;

struct Batch {
  Tensor tokens;  // (B, kLength) int64: pair (key, value) is key·kValues + value, then the queries
  Tensor values;  // (B) int64
};

Batch make_batch(int64_t size, uint32_t number) {
  DrawReader random({/*seed=*/7, /*stream=*/1, /*draw=*/number, /*step=*/0});
  std::vector<int64_t> tokens, values;
  for (int64_t b = 0; b < size; ++b) {
    const auto query = static_cast<int64_t>(random.below(kKeys));
    tokens.push_back(kKeys * kValues + query);
    for (const int64_t key : random.permutation(kKeys)) {
      const auto value = static_cast<int64_t>(random.below(kValues));
      tokens.push_back(key * kValues + value);
      if (key == query) values.push_back(value);
    }
  }
  return {Tensor::from_vector(tokens, Shape{size, kLength}), Tensor::from_vector(values)};
}

// Members are declared with their parent and name, from which "encoder.layers.0..." follows.
struct Classifier : nn::Module {
  Classifier(const nn::LayerSettings& s, nn::ModelRandom& random)
      : embedding(this, "embedding", (kValues + 1) * kKeys, s.width, random),
        encoder(this, "encoder", /*layers=*/2, s, /*final_norm=*/true, random),
        output(this, "output", s.width, kValues, random) {}

  Variable forward(const Tensor& tokens) {
    const Variable x = encoder.forward(embedding.forward(tokens), /*valid=*/Tensor());
    return output.forward(select(x, 1, 0));  // the class is read at the query, position 0
  }

  nn::Embedding embedding;
  nn::Encoder encoder;
  nn::Linear output;
};

int main() {
  nn::LayerSettings s;
  s.width = 64, s.heads = 2, s.ffn = 128, s.dropout = 0.0, s.norm = nn::NormPlace::pre;
  s.attention.kind = nn::AttentionKind::rmfa;  // kernel exp; features are drawn anew in each step
  s.attention.ppsbn = true;                    // keeps queries and keys at unit norm
  nn::ModelRandom random(/*seed=*/1);
  Classifier model(s, random);
  fmt::print("{}\n", model.encoder.layers[0]->self_attention.core().describe());

  nn::Adam adam(nn::decay_groups(model, /*weight_decay=*/0.0));
  for (uint32_t step = 1; step <= 400; ++step) {
    random.begin_step(step);    // dropout masks
    model.begin_step(step, 0);  // feature draws
    const Batch batch = make_batch(64, step);
    const Variable loss = cross_entropy(model.forward(batch.tokens), batch.values);
    model.zero_grad();
    backward(loss);
    adam.step(/*lr=*/2e-3, {.clip_norm = 1.0});
    if (step % 100 == 0) {
      // A denominator estimates a sum of exp(t) > 0 and must stay away from 0: notice how small the
      // smallest one per key is, and that none had to be floored.
      const RmfaStatistics seen = nn::rmfa_statistics(model);
      fmt::print("step {}: loss {:.3f}, smallest denominator {:.2f}, {} floored\n", step,
                 loss.item(), seen.smallest_ratio, seen.floored);
    }
  }
  const nn::EvalScope evaluation(model);  // feature draws fixed by the seed
  const Batch test = make_batch(1000, 0);
  const Tensor correct = equal(argmax(model.forward(test.tokens).value(), 1), test.values);
  fmt::print("accuracy {:.3f}\n", mean(Variable(correct.to(DType::float32))).item());
}
