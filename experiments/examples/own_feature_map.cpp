// examples/own_feature_map: a feature map that the library does not have, next to one that it has
//
// Hyperbolic features (Choromanski et al. 2021) use every random row ω twice, as exp(ω·x) and
// exp(-ω·x). The two errors partly cancel, so the estimate of exp(x·y) is better than that of
// positive features with as many columns. The map is a class and a FeatureMapKind; attention,
// decoding, redrawing and checkpoints come with them.
#include <cmath>

#include <macgrad/nn.h>

using namespace macgrad;

class HyperbolicFeatures : public nn::ProjectedFeatures {
 public:
  // Two columns per row of Ω; without weights φ·φ estimates exp(x·y + |x|²/2 + |y|²/2).
  HyperbolicFeatures(nn::Module* parent, std::string name, const nn::AttentionSettings& settings,
                     const nn::AttentionSite& site, const nn::LogitScale* scale)
      : ProjectedFeatures(parent, name, "hyperbolic", settings, site, scale, 2, 0.5) {}

  // Logarithms: linear attention subtracts their maxima, so that no exponential overflows.
  bool log_features() const override { return true; }
  nn::MappedRows map(const Variable& x, nn::Side side, const Tensor&) override {
    const Variable rows = scaled(x), u = projected(rows);
    const double log_columns = std::log(static_cast<double>(columns()));
    return {concat({u, -u}, 3) - 0.5 * log_columns, log_weight(rows, side)};
  }
};

nn::FeatureMapKind hyperbolic() {
  nn::FeatureMapKind kind = nn::feature_map("positive");  // the same settings have an effect
  kind.name = "hyperbolic";
  kind.columns_per_row = 2;
  kind.make = [](nn::Module* parent, const std::string& name, const nn::AttentionSettings& settings,
                 const nn::AttentionSite& site, const nn::LogitScale* scale) {
    return std::make_unique<HyperbolicFeatures>(parent, name, settings, site, scale);
  };
  return kind;
}

// Relative squared error of linear attention with this map, mean over draws.
double error_of(const nn::FeatureMapKind& map, const Variable& q, const Variable& k,
                const Variable& v) {
  nn::ModelRandom random(1);
  const nn::AttentionSite site{nn::AttentionRole::self, q.size(1), q.size(3), &random};
  nn::AttentionSettings settings;  // softmax attention, the exact result
  const auto exact = make_attention_core(nullptr, "exact", settings, site);
  settings.kind = nn::attention_kind("linear");
  settings.map = map;
  settings.matrix = nn::projection_matrix("iid");
  settings.features = 128;
  const auto linear = make_attention_core(nullptr, "linear", settings, site);

  const NoGrad off;
  const Variable target = exact->forward({q, k, v});
  double error = 0;
  const int draws = 50;
  for (int draw = 1; draw <= draws; ++draw) {
    linear->begin_step(static_cast<uint32_t>(draw), /*epoch=*/0);  // a fresh Ω
    const Variable difference = linear->forward({q, k, v}) - target;
    error += sum(difference * difference).item() / sum(target * target).item() / draws;
  }
  return error;
}

int main() {
  Generator generator(7);
  const auto rows = [&] { return Variable(Tensor::randn({2, 4, 100, 16}, generator)); };
  const Variable q = nn::unit_rows(rows()), k = nn::unit_rows(rows()), v = rows();
  const double own = error_of(hyperbolic(), q, k, v);
  const double positive = error_of(nn::feature_map("positive"), q, k, v);
  fmt::print("relative error, 128 columns: positive {:.5f}, hyperbolic {:.5f}, ratio {:.2f}\n",
             positive, own, positive / own);
}
