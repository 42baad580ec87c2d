// The Transformer: PyTorch's outputs and gradients, gradcheck of the whole, overfitting, sameness
// under padding, batching, accumulation and threads, draws shared in a step, decoding.
#include <omp.h>

#include <cmath>

#include "macgrad/autograd/derivatives.h"
#include "macgrad/core/safetensors.h"
#include "macgrad/nn/decoding.h"
#include "macgrad/nn/torch_names.h"
#include "macgrad/nn/training_step.h"
#include "toy_transformer.h"

namespace macgrad::nn {

using namespace macgrad::checks;

namespace {

std::vector<std::pair<std::string, AttentionSettings>> kinds() {
  AttentionSettings scaled = rmfa_settings(32);
  scaled.pre_sbn = PreSbnMode::row;
  scaled.sbn_eps = 1e-5;
  scaled.draws = DrawMethod::official;
  AttentionSettings exact = exact_settings(true);
  exact.sbn_eps = 1e-5;
  exact.kernel = dot_product_kernel("inv");
  exact.train_logit_scale = true;
  return {{"softmax", softmax_settings()}, {"rmfa + ppSBN", scaled}, {"exact + ppSBN", exact}};
}

}  // namespace

TEST_CASE("torch.nn.Transformer's weights give its outputs and gradients") {
  const std::string file = std::string(MACGRAD_FIXTURES) + "/torch_transformer.safetensors";
  const auto torch = load_safetensors(file).tensors;
  struct Kind {
    std::string name;
    NormPlace norm;
    Activation activation;
    int64_t layers;
  };
  for (const Kind& kind : {Kind{"post", NormPlace::post, Activation::relu, 2},
                           Kind{"pre", NormPlace::pre, Activation::gelu, 1}}) {
    CAPTURE(kind.name);
    LayerSettings s;
    s.width = 16;
    s.heads = 2;
    s.ffn = 32;
    s.dropout = 0.0;
    s.norm = kind.norm;
    s.activation = kind.activation;
    ModelRandom random(1);
    EncoderDecoder model(nullptr, "", kind.layers, kind.layers, s, true, random);
    model.to(DType::float64);
    load_torch_weights(model, file, kind.name + ".weights.");
    const Variable source(torch.at(kind.name + ".source"), true);
    const Variable target(torch.at(kind.name + ".target"), true);
    const Tensor valid = torch.at("target_valid");
    const Variable out = model.forward(source, torch.at("source_valid"), target, valid);
    const auto shown = [&](const Tensor& t) {
      return where(valid.unsqueeze(2), Variable(t), 0.0).value();
    };
    check_near(shown(out.value()), shown(torch.at(kind.name + ".output")), 1e-10);
    backward(out, Variable(torch.at(kind.name + ".cotangent")));
    check_near(source.grad().value(), torch.at(kind.name + ".source_gradient"), 1e-10);
    check_near(target.grad().value(), torch.at(kind.name + ".target_gradient"), 1e-10);
    std::map<std::string, Tensor> gradients;
    const std::string prefix = kind.name + ".gradients.";
    for (const auto& [name, value] : torch)
      if (name.starts_with(prefix)) gradients[name.substr(prefix.size())] = value;
    gradients = from_torch_names(gradients);
    const auto own = model.named_parameters();
    CHECK(gradients.size() == own.size());
    for (const auto& [name, p] : own) {
      CAPTURE(name);
      REQUIRE(gradients.contains(name));
      check_near(p->grad().value(), gradients.at(name), 1e-10);
    }
  }
  ModelRandom random(1);
  EncoderDecoder other(nullptr, "", 1, 1, LayerSettings{}, true, random);
  CHECK(contains(error_of([&] { load_torch_weights(other, file, "post.weights."); }),
                 "unexpected: decoder.layers.1"));
  CHECK(contains(error_of([&] { load_torch_weights(other, file, "none."); }), "'none.'"));
}

TEST_CASE("a whole micro-Transformer passes gradcheck") {
  const OneThread one_thread;
  for (const auto& [name, attention] : kinds()) {
    for (const NormPlace norm : {NormPlace::post, NormPlace::pre}) {
      CAPTURE(name);
      TransformerSettings s = tiny(attention, 4, 6);
      s.layer.norm = norm;
      s.source_vocabulary = s.target_vocabulary = kVocabulary;
      s.tie_output = norm == NormPlace::post;
      s.positions = norm == NormPlace::post ? PositionKind::sinusoidal : PositionKind::learned;
      s.max_length = 6;
      Transformer model(s);
      model.to(DType::float64);
      model.begin_step(1, 0);
      const Batch b = make_batch(2, 3, 1);
      Variables parameters;
      for (const Parameter* p : model.parameters()) parameters.push_back(*p);
      const GradcheckResult result = gradcheck(
          [&](const Variables&) { return loss_of(model, b, 0.1).sum; }, parameters, {.atol = 1e-6});
      CHECK_MESSAGE(result.ok, result.message);
    }
  }
}

TEST_CASE("Jacobian and Hessian products of a micro-Transformer are central differences") {
  const OneThread one_thread;
  for (const auto& [name, attention] : kinds()) {
    CAPTURE(name);
    Transformer model(tiny(attention, 4, 6));
    model.to(DType::float64);
    model.begin_step(1, 0);
    const Batch b = make_batch(2, 3, 1);
    Variables parameters, directions;
    Tensors start;
    for (const Parameter* p : model.parameters()) {
      parameters.push_back(*p);
      directions.emplace_back(normal_tensor(p->shape(), static_cast<uint32_t>(start.size())));
      start.push_back(p->value().clone());
    }
    const auto move = [&](double t) {
      for (size_t i = 0; i < start.size(); ++i)
        parameters[i].value().copy_from((Variable(start[i]) + t * directions[i]).value());
    };
    const auto logits = [&] {
      return model.forward(b.source, b.source_valid, b.input, b.input_valid);
    };
    const double h = 1e-5;
    move(h);
    const Variable high = logits().detach();
    const Variables steep = grad({loss_of(model, b).sum}, parameters);
    move(-h);
    const Variable low = logits().detach();
    const Variables flat = grad({loss_of(model, b).sum}, parameters);
    move(0.0);
    const Variables product = hvp(loss_of(model, b).sum, parameters, directions);
    const auto scale_of = [](const Tensor& t) { return 1.0 + std::abs(statistics(t).l2); };
    const Variable slope = (high - low) * (0.5 / h);
    check_near(jvp({logits()}, parameters, directions)[0].value(), slope.value(),
               1e-7 * scale_of(slope.value()));
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Variable change = (steep[i] - flat[i]) * (0.5 / h);
      check_near(product[i].value(), change.value(), 1e-6 * scale_of(change.value()));
    }
    // One example alone sees what it sees in company.
    if (attention.ppsbn && attention.kind.name == "exact") continue;  // batch statistics
    const Tensors each = per_example_gradients(
        2, [&](int64_t e) { return loss_of(model, rows(b, e, e + 1)).sum; }, parameters);
    const Variables together = grad({loss_of(model, b).sum}, parameters);
    for (size_t i = 0; i < parameters.size(); ++i)
      check_near(sum(Variable(each[i]), {0}).value(), together[i].value(),
                 1e-9 * scale_of(together[i].value()));
  }
}

TEST_CASE("padding and company change no logit") {
  for (const auto& [name, attention] : kinds()) {
    CAPTURE(name);
    Transformer model(tiny(attention));
    model.to(DType::float64);
    model.eval();
    const Batch b = make_batch(4, 6, 2);
    const Tensor all = model.forward(b.source, b.source_valid, b.input, b.input_valid).value();
    for (int64_t i = 0; i < 4; ++i) {
      int64_t n = 0;
      for (const bool valid : b.source_valid.select(0, i).to_vector<bool>()) n += valid;
      const Tensor alone =
          model
              .forward(b.source.slice(0, i, i + 1).slice(1, 0, n).contiguous(), Tensor(),
                       b.input.slice(0, i, i + 1).slice(1, 0, n + 1).contiguous(), Tensor())
              .value();
      check_near(alone, all.slice(0, i, i + 1).slice(1, 0, n + 1), 1e-11);
    }
  }
}

TEST_CASE("logits of chosen places are those of all places, and padding may be left out") {
  for (const auto& [name, attention] : kinds()) {
    CAPTURE(name);
    Transformer model(tiny(attention));
    model.to(DType::float64);
    model.begin_step(1, 0);
    const Batch b = make_batch(4, 6, 2);
    const auto forward = [&](const Tensor& places) {
      return model.forward(b.source, b.source_valid, b.input, b.input_valid, places);
    };
    const Tensor chosen = Tensor::from_vector(std::vector<int64_t>{9, 0, 4}, Shape{3});
    const Tensor all = forward(Tensor()).value().reshape(Shape{b.target.numel(), kVocabulary});
    const Tensor some = forward(chosen).value();
    for (int64_t p = 0; p < 3; ++p)
      check_near(some.select(0, p), all.select(0, chosen.at({p})), 1e-12);

    std::vector<int64_t> places, tokens;
    const auto target = b.target.to_vector<int64_t>();
    for (size_t i = 0; i < target.size(); ++i)
      if (target[i] != kPad) {
        places.push_back(static_cast<int64_t>(i));
        tokens.push_back(target[i]);
      }
    REQUIRE(tokens.size() < target.size());
    const Shape shape{static_cast<int64_t>(tokens.size())};
    const TokenLoss whole = loss_of(model, b, 0.1);
    const TokenLoss packed = token_loss(forward(Tensor::from_vector(places, shape)),
                                        Tensor::from_vector(tokens, shape), kPad, 0.1);
    CHECK(packed.tokens == whole.tokens);
    CHECK(packed.sum.item() == doctest::Approx(whole.sum.item()).epsilon(1e-12));
    std::vector<Variable> parameters;
    for (const auto& [path, parameter] : model.named_parameters()) parameters.push_back(*parameter);
    const auto expected = grad({whole.sum}, parameters);
    const auto found = grad({packed.sum}, parameters);
    for (size_t i = 0; i < parameters.size(); ++i)
      check_near(found[i].value(), expected[i].value(), 1e-10);
  }
}

TEST_CASE("accumulated micro-batches make the large batch's step, with one draw for all") {
  for (const auto& [name, attention] : kinds()) {
    if (attention.ppsbn && attention.kind.name == "exact") continue;  // batch statistics
    CAPTURE(name);
    Transformer large(tiny(attention)), micro(tiny(attention));
    for (Transformer* m : {&large, &micro}) m->to(DType::float64);
    const Batch b = make_batch(6, 5, 3);
    Adam a(large, 0.01), c(micro, 0.01);
    const TrainingStepOptions options{.lr = constant_schedule(0.01), .clip_norm = 0.5};
    const auto loss = [](Transformer& m) {
      return [&m](const Batch& batch) { return loss_of(m, batch, 0.1).sum; };
    };
    TrainingStep<Batch> at_once(large, a, loss(large), options),
        apart(micro, c, loss(micro), options);
    for (int step = 1; step <= 2; ++step) {
      const StepReport one = at_once(b);
      const StepReport sum = apart({rows(b, 0, 1), rows(b, 1, 4), rows(b, 4, 6)});
      CHECK(sum.count == one.count);
      CHECK(sum.loss == doctest::Approx(one.loss).epsilon(1e-12));
      CHECK(sum.gradient_norm == doctest::Approx(one.gradient_norm).epsilon(1e-10));
    }
    const auto state = micro.state_dict();
    for (const auto& [path, value] : large.state_dict()) {
      CAPTURE(path);
      check_near(value, state.at(path), 1e-10);
    }
  }
}

TEST_CASE("one draw serves a step; a checkpoint brings it and the evaluation draws back") {
  AttentionSettings attention = kinds()[1].second;
  attention.eval_draws = 2;
  Transformer model(tiny(attention));
  const Batch b = make_batch(3, 4, 4);
  const auto logits = [&](Transformer& m) {
    return m.forward(b.source, b.source_valid, b.input, b.input_valid).value().clone();
  };
  model.begin_step(1, 0);
  const Tensor first = logits(model);
  CHECK(max_abs_difference(first, logits(model)) == 0.0);
  model.begin_step(2, 0);
  const Tensor second = logits(model);
  CHECK(max_abs_difference(first, second) > 1e-6);

  TransformerSettings other_settings = tiny(attention);
  other_settings.seed = 1234;
  Transformer other(other_settings);
  other.load_state_dict(model.state_dict());
  CHECK(max_abs_difference(logits(other), second) == 0.0);
  const Tensor averaged =
      model.eval_log_probs(b.source, b.source_valid, b.input, b.input_valid).value();
  CHECK(max_abs_difference(
            averaged,
            other.eval_log_probs(b.source, b.source_valid, b.input, b.input_valid).value()) == 0.0);
  model.eval();
  Tensor mean = Tensor::zeros(averaged.shape());
  for (int e = 0; e < 2; ++e) {
    model.use_eval_draw(e);
    mean = add(Variable(mean), mul(log_softmax(Variable(logits(model)), -1), 0.5)).value();
  }
  check_near(mean, averaged, 1e-6);
  model.use_eval_draw(0);
  const Tensor zero = logits(model);
  model.use_eval_draw(1);
  CHECK(max_abs_difference(zero, logits(model)) > 1e-6);
}

TEST_CASE("one training step is the same at any number of threads") {
  const int threads_before = omp_get_max_threads();
  for (auto& [name, attention] : kinds()) {
    CAPTURE(name);
    std::map<std::string, Tensor> expected;
    for (const int threads : {1, 2, 3, 8, 16}) {
      CAPTURE(threads);
      omp_set_num_threads(threads);
      TransformerSettings s = tiny(attention, 32, 64);
      s.layer.dropout = 0.1;
      s.layer.attention.dropout = s.layer.attention.kind.name == "softmax" ? 0.1 : 0.0;
      Transformer model(s);
      const Batch b = make_batch(16, 12, 5);
      model.begin_step(1, 0);
      backward(loss_of(model, b, 0.1).mean());
      std::map<std::string, Tensor> gradients;
      for (const auto& [path, p] : model.named_parameters())
        gradients[path] = p->grad().value().clone();
      if (threads == 1) expected = gradients;
      for (const auto& [path, g] : gradients) {
        CAPTURE(path);
        const double size =
            std::max(1e-3, max_abs_difference(expected.at(path), Tensor::zeros(g.shape())));
        CHECK(max_abs_difference(g, expected.at(path)) <= 1e-6 * size);
      }
    }
  }
  omp_set_num_threads(threads_before);
}

TEST_CASE("greedy decoding: a state changes nothing, sentences end, draws are averaged") {
  const OneThread one_thread;
  for (auto [name, attention] : kinds()) {
    CAPTURE(name);
    attention.eval_draws = 2;
    Transformer model(tiny(attention));
    const Batch b = make_batch(5, 6, 6);
    const auto decoded = greedy(model, b, 7);
    CHECK(model.training());
    REQUIRE(decoded.size() == 5);
    // The same by hand: the whole prefix each time.
    for (int64_t i = 0; i < 5; ++i) {
      std::vector<int64_t> prefix{kBegin};
      while (prefix.size() <= 7) {
        const Tensor input =
            Tensor::from_vector(prefix, Shape{1, static_cast<int64_t>(prefix.size())});
        const Tensor lp =
            model
                .eval_log_probs(b.source.slice(0, i, i + 1).contiguous(),
                                b.source_valid.slice(0, i, i + 1).contiguous(), input, Tensor())
                .value();
        const int64_t best =
            argmax(lp.select(0, 0).select(0, lp.size(1) - 1), 0).to_vector<int64_t>()[0];
        if (best == kEnd) break;
        prefix.push_back(best);
      }
      prefix.erase(prefix.begin());
      CHECK(prefix == decoded[static_cast<size_t>(i)]);
    }
  }
}

TEST_CASE("32 sentences are learned by heart") {
  const OneThread one_thread;
  AttentionSettings sharper = rmfa_settings(64);
  sharper.draws = DrawMethod::optimal;
  sharper.logit_scale = 4.0;
  AttentionSettings frozen = rmfa_settings(64);
  frozen.redraw = RedrawPolicy::parse("never");
  struct Kind {
    std::string name;
    AttentionSettings attention;
    int steps;
  };
  for (const Kind& kind : {Kind{"softmax", softmax_settings(), 150},
                           Kind{"rmfa + ppSBN, as the paper", rmfa_settings(64), 250},
                           Kind{"rmfa + ppSBN, one draw", frozen, 250},
                           Kind{"rmfa + ppSBN, scale 4, optimal", sharper, 250}}) {
    CAPTURE(kind.name);
    TransformerSettings s = tiny(kind.attention, 64, 128);
    s.layer.norm = NormPlace::pre;
    s.layer.heads = 4;
    Transformer model(s);
    Adam adam(model, 0.0, {.beta2 = 0.98});
    TrainingStep step(model, adam, [&](const Batch& batch) { return loss_of(model, batch).sum; },
                      {.lr = constant_schedule(5e-3), .clip_norm = 1.0});
    const Batch b = make_batch(32, 6, 7);
    double loss = 1.0;
    while (loss >= 0.03 && step.steps() < kind.steps) loss = step(b).loss;
    CHECK(loss < 0.05);
    MESSAGE(kind.name << ": " << loss << " after " << adam.steps() << " updates");
    const auto decoded = greedy(model, b, 8);
    int right = 0;
    for (int64_t i = 0; i < 32; ++i) {
      std::vector<int64_t> expected;
      for (const int64_t id : b.target.select(0, i).to_vector<int64_t>())
        if (id != kPad && id != kEnd) expected.push_back(id);
      right += decoded[static_cast<size_t>(i)] == expected;
    }
    CHECK(right >= 30);
  }
}

}  // namespace macgrad::nn
