// The table of presets: one function a row, which names every setting that it cares about.
#include "macgrad/experiments/multi30k/presets.h"

#include <algorithm>
#include <cmath>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::experiments {
namespace {

void none(Multi30kSettings&) {}

// What the presets have in common: the recipe of Vaswani et al. (2017), post-norm.
void base(Multi30kSettings& s) {
  s.text = "tok";
  s.subwords = "bpe";
  s.vocabulary_size = 10000;
  s.vocabularies = "shared";
  s.norm = "post";
  s.activation = "relu";
  s.share_embeddings = true;
  s.qkv_gain = std::sqrt(0.5);
  s.schedule = "inverse-sqrt";
  s.warmup_from = 1e-7;
  s.label_smoothing = 0.1;
  s.weight_decay = 0.0;
  s.clip = 0.0;
  s.adam_beta1 = 0.9;
  s.adam_beta2 = 0.98;
  s.accumulate = 1;
  s.beam = 5;
  s.length_penalty = 1.0;
  s.test = {"test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"};
}

// What --attention rmfa and --ppsbn stand for: the form of the Macformer paper.
void paper_form(Multi30kSettings& s) {
  s.kernel = "exp";
  s.logit_scale = 1.0;
  s.train_logit_scale = false;
  s.features = 128;
  s.draws = "iid";
  s.redraw = "step";
  s.eval_draws = 1;
  s.denominator = "floor";
  s.presbn = "auto";
}

// transformer-tiny of Wu et al. (2021, "Good for Misconceived Reasons"), English to German.
void transformer_tiny(Multi30kSettings& s) {
  base(s);
  paper_form(s);
  s.source = "en";
  s.target = "de";
  s.layers = 4;
  s.d_model = 128;
  s.heads = 4;
  s.ffn = 256;
  s.dropout = 0.3;
  s.batch_tokens = 8192;
  s.lr = 5e-3;
  s.warmup = 2000;
  s.adam_eps = 1e-8;
  s.epochs = 1000;  // --max-updates and --patience end it
  s.max_updates = 8000;
  s.patience = 10;
  s.average = 10;
  s.bleu_every = 5;
}

// The base Transformer of Figure 3 of the Macformer paper; --ppsbn is its second curve, and
// --attention rmfa --ppsbn the paper's RMFA.
void paper(Multi30kSettings& s) {
  base(s);
  paper_form(s);
  s.source = "de";
  s.target = "en";
  s.layers = 6;
  s.d_model = 512;
  s.heads = 8;
  s.ffn = 2048;
  s.dropout = 0.1;
  s.batch_tokens = 4096;
  s.lr = 7e-4;
  s.warmup = 4000;
  s.adam_eps = 1e-9;
  s.epochs = 20;
  s.beam = 1;
}

// Minutes on two cores; the scores are those of a small model stopped early.
void quick(Multi30kSettings& s) {
  base(s);
  s.source = "en";
  s.target = "de";
  s.layers = 2;
  s.d_model = 128;
  s.heads = 4;
  s.ffn = 256;
  s.dropout = 0.1;
  s.batch_tokens = 4096;
  s.lr = 4e-3;
  s.warmup = 300;
  s.clip = 1.0;
  s.adam_eps = 1e-8;
  s.epochs = 8;
  s.average = 3;
  s.test = {"test_2016_flickr"};
}

struct Preset {
  const char* name;
  void (*apply)(Multi30kSettings&);
};
constexpr Preset kPresets[] = {
    {"none", none},
    {"transformer-tiny", transformer_tiny},
    {"paper", paper},
    {"quick", quick},
};

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

void apply_preset(Multi30kSettings& settings, std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name != name) continue;
    preset.apply(settings);
    settings.preset = name;
    return;
  }
  throw Error("--preset: unknown \"{}\"; known: {}", name, fmt::join(preset_names(), ", "));
}

bool asks_for_toy(int argc, const char* const* argv) {
  return std::any_of(argv + 1, argv + std::max(argc, 1),
                     [](std::string_view word) { return word == "--toy" || word == "--toy=true"; });
}

void start_from_preset(Multi30kSettings& settings, int argc, const char* const* argv) {
  const std::string preset = value_of("--preset", argc, argv);
  const std::vector<std::string> names = preset_names();
  if (std::find(names.begin(), names.end(), preset) != names.end()) apply_preset(settings, preset);
  if (asks_for_toy(argc, argv)) make_toy(settings);
}

}  // namespace macgrad::experiments
