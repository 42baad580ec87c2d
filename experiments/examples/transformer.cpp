// examples/transformer: trains an encoder with RMFA on an associative recall task
//
// A sequence is a query and 16 (key, value) pairs in random order, one token each; the class is the
// value of the queried key, one of four. Attention that is close to a mean cannot tell the pairs
// apart: the paper's form (nn::paper_attention()) reaches 0.80, the defaults used here 0.99.
#include <macgrad/nn.h>

using namespace macgrad;

constexpr int64_t kKeys = 16, kValues = 4, kLength = 1 + kKeys;

// Inputs (B, kLength): pair (key, value) is the token key·kValues + value, queries come after
// those. Targets (B): values. Both int64.
nn::Examples make_batch(int64_t size, uint32_t number) {
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
  nn::LayerSettings s{.width = 64,
                      .heads = 2,
                      .ffn = 128,
                      .dropout = 0.0,
                      .norm = nn::NormPlace::pre,
                      .attention = {}};
  s.attention.kind = nn::attention_kind("rmfa");  // kernel exp; features are drawn anew per step
  s.attention.ppsbn = true;                       // keeps queries and keys at unit norm
  nn::ModelRandom random(/*seed=*/1);
  Classifier model(s, random);
  fmt::print("{}\n", model.encoder.layers[0]->self_attention.core().describe());

  nn::Adam adam(model);
  nn::TrainingStep step(model, adam,
                        [&](const nn::Examples& batch) {
                          return cross_entropy(model.forward(batch.inputs), batch.targets,
                                               /*smoothing=*/0.0, kNoIgnore, Reduction::sum);
                        },
                        {.lr = nn::constant_schedule(1e-3), .clip_norm = 1.0});
  for (uint32_t number = 1; number <= 400; ++number) {
    const nn::StepReport report = step(make_batch(64, number));  // draws new features first
    if (number % 100 != 0) continue;
    // A denominator estimates a sum of exp(t) > 0. Notice how small the smallest one of a step is,
    // per visible key; those below 0.001 are floored.
    fmt::print("step {}: loss {:.3f}, smallest denominator {:.2f}, {} floored\n", number,
               report.loss, report.denominators.smallest_ratio, report.denominators.floored);
  }
  const nn::EvalScope evaluation(model);  // feature draws fixed by the seed
  const nn::Examples test = make_batch(1000, 0);
  const Tensor correct = equal(argmax(model.forward(test.inputs).value(), 1), test.targets);
  fmt::print("accuracy {:.3f}\n", mean(Variable(correct.to(DType::float32))).item());
}
