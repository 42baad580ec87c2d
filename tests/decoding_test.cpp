// Decoding: a step with states against the whole prefix, and beam search against a plain search,
// against all sequences there are, and against itself in other batches.
#include "macgrad/nn/decoding.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "nn_checks.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

constexpr int64_t kPad = 0, kBegin = 1, kEnd = 2;
const SpecialTokens kSpecial{kBegin, kEnd, {kPad, kBegin}};

TransformerSettings small(const AttentionSettings& attention, int64_t vocabulary = 12) {
  TransformerSettings s;
  s.source_vocabulary = s.target_vocabulary = vocabulary;
  s.encoder_layers = 1;
  s.decoder_layers = 2;
  s.layer.width = 8;
  s.layer.heads = 2;
  s.layer.ffn = 12;
  s.layer.dropout = 0.1;  // evaluation must not drop
  s.layer.attention = attention;
  s.tie_output = false;
  s.seed = 4;
  return s;
}

struct Source {
  Tensor ids, valid;
  std::vector<int64_t> lengths;
};
Source make_source(const std::vector<int64_t>& lengths, int64_t width, int64_t vocabulary = 12) {
  const auto B = static_cast<int64_t>(lengths.size());
  const Tensor valid = first_places(lengths, width);
  const Tensor ids = random_ids(B, width, 3, vocabulary, 1);
  return {where(valid, Variable(ids.to(DType::float64)), 0.0).value().to(DType::int64), valid,
          lengths};
}

/// Running statistics as after some training, and outputs with preferences: sentences of many
/// lengths.
void liven(Transformer& model, double scale = 4.0, double end = 1.0) {
  const Source s = make_source({5, 3}, 5);
  const NoGrad no_grad;
  for (int i = 0; i < 3; ++i) model.forward(s.ids, s.valid, s.ids, s.valid);
  const Tensor weight = model.output->weight.value();
  weight.copy_from(mul(Variable(weight.clone()), scale).value());
  model.output->bias->value().select(0, kEnd).fill(end);
}

struct Kind {
  std::string name;
  AttentionSettings attention;
};
std::vector<Kind> kinds() {
  std::vector<Kind> all{{"softmax", softmax_settings()}};
  for (const std::string kernel : {"exp", "inv", "log", "trigh", "sqrt"}) {
    for (const bool exact : {true, false}) {
      AttentionSettings s = exact ? exact_settings(true) : rmfa_settings(24);
      s.kernel = dot_product_kernel(kernel);
      s.sbn_eps = 1e-6;
      all.push_back({(exact ? "exact + ppSBN " : "rmfa + ppSBN ") + kernel, s});
    }
  }
  AttentionSettings s = softmax_settings();
  s.ppsbn = true;
  s.sbn_eps = 1e-6;
  all.push_back({"softmax + ppSBN", s});
  s.pre_sbn = PreSbnMode::batch;
  all.push_back({"softmax + ppSBN batch", s});
  s = rmfa_settings(24);
  s.pre_sbn = PreSbnMode::batch;
  s.sbn_eps = 1e-6;
  s.eval_draws = 3;
  s.draws_per_head = true;
  s.draws = DrawMethod::optimal;
  s.logit_scale = 2.0;
  s.train_logit_scale = true;
  all.push_back({"rmfa + ppSBN batch, 3 draws, a head each, trained scale", s});
  all.push_back({"exact", exact_settings(false)});
  s = rmfa_settings(24, false);
  s.qk_norm = true;
  s.draws = DrawMethod::official;
  s.eval_draws = 2;
  all.push_back({"rmfa, unit norm, 2 draws", s});
  s.qk_norm = false;
  all.push_back({"rmfa without norm", s});
  return all;
}

std::vector<int64_t> limits_of(const Source& s, int64_t most) {
  return std::vector<int64_t>(s.lengths.size(), most);
}

/// Log-probabilities after a prefix, by running all of it.
std::vector<double> plain_log_probs(Transformer& model, const Source& s, int64_t sentence,
                                    const std::vector<int64_t>& tokens) {
  std::vector<int64_t> prefix{kBegin};
  prefix.insert(prefix.end(), tokens.begin(), tokens.end());
  const auto row = [&](const Tensor& t) { return t.slice(0, sentence, sentence + 1).contiguous(); };
  const NoGrad no_grad;
  const Tensor all =
      model
          .eval_log_probs(row(s.ids), row(s.valid),
                          Tensor::from_vector(prefix, Shape{1, std::ssize(prefix)}), Tensor())
          .value();
  return all.select(0, 0).select(0, all.size(1) - 1).to_vector<double>();
}

/// Beam search as defined, one sentence at a time, without states.
std::vector<Hypothesis> plain_search(Transformer& model, const Source& s, int64_t sentence,
                                     int64_t limit, const SearchSettings& settings) {
  const auto beam = static_cast<size_t>(settings.beam);
  std::vector<Hypothesis> open{{}}, finished;
  for (int64_t n = 0; n <= limit && finished.size() < beam; ++n) {
    std::vector<std::tuple<double, size_t, int64_t>> all;  // -score, hypothesis, token
    for (size_t h = 0; h < open.size(); ++h) {
      const auto lp = plain_log_probs(model, s, sentence, open[h].tokens);
      for (int64_t token = kEnd; token < std::ssize(lp); ++token)
        if (n < limit || token == kEnd)
          all.emplace_back(-(open[h].score + lp[static_cast<size_t>(token)]), h, token);
    }
    std::sort(all.begin(), all.end());
    std::vector<Hypothesis> next;
    for (size_t rank = 0; rank < std::min(all.size(), 2 * beam); ++rank) {
      const auto& [cost, h, token] = all[rank];
      Hypothesis longer{open[h].tokens, -cost};
      if (token != kEnd) {
        longer.tokens.push_back(token);
        if (next.size() < beam) next.push_back(longer);
      } else if (rank < beam && finished.size() < beam) {
        longer.score /= std::pow(static_cast<double>(n + 1), settings.length_penalty);
        finished.push_back(longer);
      }
    }
    open = next;
  }
  std::stable_sort(finished.begin(), finished.end(),
                   [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
  return finished;
}

void check_same(const std::vector<Hypothesis>& a, const std::vector<Hypothesis>& b,
                double tolerance = 1e-9) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i].tokens == b[i].tokens);
    CHECK(a[i].score == doctest::Approx(b[i].score).epsilon(tolerance));
  }
}

}  // namespace

TEST_CASE("decoding: steps with states give the log-probabilities of the whole prefix") {
  const OneThread one_thread;
  const Source s = make_source({6, 2, 4}, 6);
  const Tensor target = random_ids(3, 6, 3, 12, 2);
  for (const Kind& kind : kinds()) {
    for (const NormPlace norm : {NormPlace::pre, NormPlace::post}) {
      Tensor exact;  // of the whole prefix in float64
      for (const DType dtype : {DType::float64, DType::float32}) {
        CAPTURE(kind.name);
        CAPTURE(std::string(name(dtype)));
        TransformerSettings settings = small(kind.attention);
        settings.layer.norm = norm;
        settings.positions =
            norm == NormPlace::pre ? PositionKind::sinusoidal : PositionKind::learned;
        Transformer model(settings);
        liven(model);
        model.to(dtype);
        const NoGrad no_grad;
        const EvalScope evaluation(model);
        const Tensor whole = model.eval_log_probs(s.ids, s.valid, target, Tensor()).value();
        if (dtype == DType::float64) exact = whole;
        // The kernel inv has a denominator near 0, which makes rounding 100 times as large: float32
        // is compared with float64, since states and prefix round differently.
        check_relative(whole, exact, dtype == DType::float64 ? 0.0 : 3e-5);
        for (const int64_t first : {1, 3}) {
          StepDecoder decoder(model, s.ids, s.valid);
          for (int64_t t = 0; t < 6;) {
            const int64_t end = t == 0 ? first : t + 1;
            const Tensor now = decoder.advance(target.slice(1, t, end).contiguous());
            check_relative(now, exact.slice(1, t, end), dtype == DType::float64 ? 1e-12 : 6e-5);
            t = end;
          }
        }
      }
    }
  }
}

TEST_CASE("decoding: padding in the target, and every logit of Transformer::decode") {
  const OneThread one_thread;
  const Source s = make_source({6, 2, 4}, 6);
  const Tensor target = random_ids(3, 5, 3, 12, 3);
  const Tensor valid = Tensor::from_vector(
      std::vector<bool>{true, true, true, true, true,  //
                        false, true, true, false, true, false, false, true, true, true},
      Shape{3, 5});
  for (const Kind& kind : kinds()) {
    CAPTURE(kind.name);
    Transformer model(small(kind.attention));
    liven(model);
    model.to(DType::float64);
    const NoGrad no_grad;
    const EvalScope evaluation(model);
    const Variable memory = model.encode(s.ids, s.valid);
    const Tensor whole = model.decode(target, valid, memory, s.valid).value();
    std::vector<LayerState> states(2);
    for (int64_t t = 0; t < 5; ++t) {
      const Tensor now =
          model
              .decode(target.slice(1, t, t + 1).contiguous(), valid.slice(1, 0, t + 1).contiguous(),
                      t == 0 ? memory : Variable(), s.valid, &states)
              .value();
      const Tensor shown = valid.slice(1, t, t + 1).unsqueeze(2);
      const auto counted = [&](const Tensor& x) { return where(shown, Variable(x), 0.0).value(); };
      check_near(counted(now), counted(whole.slice(1, t, t + 1)), 1e-11);
    }
  }
}

TEST_CASE("decoding: hypotheses of one sentence share its source, and move and leave") {
  const OneThread one_thread;
  const Source s = make_source({6, 2, 4}, 6);
  for (const Kind& kind : kinds()) {
    CAPTURE(kind.name);
    Transformer model(small(kind.attention));
    liven(model);
    model.to(DType::float64);
    const NoGrad no_grad;
    const EvalScope evaluation(model);
    StepDecoder decoder(model, s.ids, s.valid);
    const auto step = [&](const std::vector<int64_t>& tokens) {
      return decoder.advance(Tensor::from_vector(tokens, Shape{std::ssize(tokens), 1}));
    };
    step({kBegin, kBegin, kBegin});
    decoder.select({0, 0, 1, 1, 2, 2}, {0, 1, 2});
    step({3, 4, 5, 6, 7, 8});
    // The second sentence leaves, the others' hypotheses cross or double.
    decoder.select({1, 0, 5, 5}, {0, 2});
    const Tensor now = step({9, 10, 11, 3});
    const std::vector<std::pair<int64_t, std::vector<int64_t>>> expected = {
        {0, {4, 9}}, {0, {3, 10}}, {2, {8, 11}}, {2, {8, 3}}};
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto want = plain_log_probs(model, s, expected[i].first, expected[i].second);
      check_near(now.select(0, static_cast<int64_t>(i)).select(0, 0), Tensor::from_vector(want),
                 1e-11);
    }
  }
}

TEST_CASE("beam search: a beam as wide as the language finds the best of all sequences") {
  const OneThread one_thread;
  constexpr int64_t kLongest = 3;
  const Source s = make_source({4, 3}, 4, 5);
  for (const double penalty : {0.0, 1.0, 2.5}) {
    TransformerSettings settings = small(softmax_settings(), 5);
    Transformer model(settings);
    const Tensor weight = model.output->weight.value();
    weight.copy_from(mul(Variable(weight.clone()), 3.0).value());
    model.to(DType::float64);
    const auto found = beam_search(model, s.ids, s.valid, limits_of(s, kLongest), kSpecial,
                                   {.beam = 700, .length_penalty = penalty});
    for (int64_t b = 0; b < 2; ++b) {
      // Tokens 3 and 4 in every order.
      std::vector<Hypothesis> all;
      for (int64_t n = 0; n <= kLongest; ++n) {
        for (int64_t bits = 0; bits < (1 << n); ++bits) {
          Hypothesis h;
          for (int64_t i = 0; i <= n; ++i) {
            const auto lp = plain_log_probs(model, s, b, h.tokens);
            const int64_t token = i == n ? kEnd : 3 + ((bits >> i) & 1);
            h.score += lp[static_cast<size_t>(token)];
            if (i < n) h.tokens.push_back(token);
          }
          h.score /= std::pow(static_cast<double>(n + 1), penalty);
          all.push_back(h);
        }
      }
      std::sort(all.begin(), all.end(),
                [](const Hypothesis& x, const Hypothesis& y) { return x.score > y.score; });
      check_same(found[static_cast<size_t>(b)], all);
    }
  }
}

TEST_CASE("beam search: equals the plain search, sentence by sentence, whatever the batch") {
  const OneThread one_thread;
  const Source s = make_source({7, 2, 5, 3}, 7);
  std::set<size_t> lengths;
  for (const Kind& kind : kinds()) {
    // Every kernel has had its turn above.
    if (kind.attention.kernel.name() != "exp") continue;
    Transformer model(small(kind.attention));
    liven(model);
    model.to(DType::float64);
    for (const int64_t beam : {1, 2, 5}) {
      for (const double penalty : {0.0, 1.0}) {
        CAPTURE(kind.name);
        CAPTURE(beam);
        CAPTURE(penalty);
        const SearchSettings settings{beam, penalty};
        const std::vector<int64_t> limits{6, 4, 9, 1};
        const auto found = beam_search(model, s.ids, s.valid, limits, kSpecial, settings);
        CHECK(model.training());
        for (size_t b = 0; b < 4; ++b) {
          const auto i = static_cast<int64_t>(b);
          check_same(found[b], plain_search(model, s, i, limits[b], settings));
          // Alone, and behind more padding.
          const Tensor one = s.ids.slice(0, i, i + 1).contiguous();
          const Tensor wider = pad(Variable(one.to(DType::float64)), 1, 0, 3).value();
          const auto alone =
              beam_search(model, wider.to(DType::int64), first_places({s.lengths[b]}, 10),
                          {limits[b]}, kSpecial, settings);
          check_same(alone[0], found[b]);
          for (const Hypothesis& h : found[b]) {
            lengths.insert(h.tokens.size());
            CHECK(std::ssize(h.tokens) <= limits[b]);
            for (const int64_t token : h.tokens) CHECK(token > kEnd);
          }
        }
      }
    }
  }
  CHECK(lengths.size() >= 6);  // ends of sentences were found, not only limits
}

TEST_CASE("beam search: equal scores go to the earlier hypothesis and the smaller token") {
  Transformer model(small(softmax_settings(), 6));
  model.output->weight.value().fill(0.0);  // every token as likely as another
  const Source s = make_source({3}, 3, 6);
  const auto found = beam_search(model, s.ids, s.valid, {2}, kSpecial, {.beam = 3});
  // First the end and 3, 4 (5 follows as the third open one); then each in turn ends.
  REQUIRE(found[0].size() == 3);
  CHECK(found[0][0].tokens == std::vector<int64_t>{});
  CHECK(found[0][1].tokens == std::vector<int64_t>{3});
  CHECK(found[0][2].tokens == std::vector<int64_t>{3, 3});
  for (const Hypothesis& h : found[0]) CHECK(h.score == doctest::Approx(-std::log(6.0)));
}

TEST_CASE("beam search: no room, no numbers, and settings that are refused") {
  Transformer model(small(softmax_settings()));
  const Source s = make_source({3, 2}, 3);
  const auto search = [&](const std::vector<int64_t>& limits, const SearchSettings& settings) {
    return beam_search(model, s.ids, s.valid, limits, kSpecial, settings);
  };
  const auto none = search({0, 0}, {.beam = 4});
  for (const auto& one : none) {
    REQUIRE(one.size() == 1);
    CHECK(one[0].tokens.empty());
    CHECK(std::isfinite(one[0].score));
  }
  CHECK(contains(error_of([&] { search({1, 1}, {.beam = 0}); }), "at least 1"));
  CHECK(contains(error_of([&] { search({1, 1}, {.length_penalty = NAN}); }), "finite"));
  CHECK(contains(error_of([&] { search({1}, {}); }), "1 length limits for 2 sentences"));
  const auto with = [&](const std::vector<int64_t>& never) {
    return error_of([&] { beam_search(model, s.ids, s.valid, {1, 1}, {kBegin, kEnd, never}, {}); });
  };
  CHECK(contains(with({kPad, kEnd}), "no translation could end"));
  CHECK(contains(with({12}), "never has 12, which is no token below 12"));
  CHECK(contains(with({-1}), "never has -1"));
  model.train();
  CHECK(contains(error_of([&] { StepDecoder(model, s.ids, s.valid); }), "EvalScope"));
  {
    const NoGrad no_grad;
    const EvalScope evaluation(model);
    std::vector<LayerState> states(model.decoder.layers.size());
    CHECK(contains(error_of([&] { model.decode(s.ids, Tensor(), Variable(), s.valid, &states); }),
                   "must bring the encoded source"));
  }
  model.output->bias->value().fill(std::nan(""));
  const auto lost = search({3, 3}, {.beam = 2});
  CHECK(lost[1][0].tokens.empty());
  CHECK(std::isinf(lost[1][0].score));
}

}  // namespace macgrad::nn
