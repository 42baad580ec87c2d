// The loops over kernels, lengths, draw methods and D. Data and draws have streams of their own,
// and all methods see the same data, so that a row does not depend on which others are measured. A
// D that a method cannot have leaves its row out with a note.
#include "macgrad/experiments/nmse/measure.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>

#include "macgrad/autograd/ops.h"
#include "macgrad/experiments/nmse/attention.h"

namespace macgrad::experiments {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
constexpr uint32_t kDataStream = 1;
constexpr uint32_t kDrawStream = 2;

double median(std::vector<double> values) {
  if (values.empty()) return kMissing;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

// Milliseconds of f().
template <class F>
double timed(Device device, F&& f) {
  wait_for(device);
  const auto start = std::chrono::steady_clock::now();
  f();
  wait_for(device);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

double memory_bytes() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
}

Variable normal(const NmseSettings& s, int64_t n, Generator& generator) {
  return Variable(Tensor::randn({s.batch, s.heads, n, s.dim}, generator, dtype_of(s.common),
                                device_of(s.common)));
}

struct Data {
  Inputs inputs;       // q and k after preSBN
  Variable cotangent;  // undefined without --gradients
};

// Lengths share neither data nor draws.
uint64_t seed_of(const NmseSettings& s, int64_t n) {
  return s.common.seed + static_cast<uint64_t>(n) * 0x9E3779B97F4A7C15u;
}

// Fresh data of one repeat: a function of (seed, length, repeat).
Data make_data(const NmseSettings& s, int64_t n, int64_t repeat) {
  const NoGrad off;
  Generator generator(seed_of(s, n), kDataStream);
  generator.begin_step(static_cast<uint32_t>(repeat));
  Data d;
  d.inputs = {normal(s, n, generator), normal(s, n, generator), normal(s, n, generator)};
  if (s.gradients) d.cotangent = normal(s, n, generator);
  if (s.presbn == "none") return d;
  const auto statistics = s.presbn == "row" ? SbnStatistics::row : SbnStatistics::batch;
  for (Variable* x : {&d.inputs.q, &d.inputs.k})
    *x = pre_sbn(*x, Tensor(), statistics, s.eps, nullptr);
  return d;
}

// Errors of one attention over the repeats.
struct Errors {
  std::vector<double> out;
  std::vector<double> gradients[3];

  void add(const AttentionResult& result, const AttentionResult& exact) {
    out.push_back(normalized_error(result.out, exact.out));
    for (size_t i = 0; i < result.gradients.size(); ++i)
      gradients[i].push_back(normalized_error(result.gradients[i], exact.gradients[i]));
  }
  std::vector<LogError> gradient_errors() const {
    std::vector<LogError> list;
    if (!gradients[0].empty())
      for (const auto& g : gradients) list.push_back(log_error(g));
    return list;
  }
};

struct Cell {
  Errors errors;
  std::vector<double> draw_ms, rmfa_ms;
  int64_t unsafe = 0;
  double smallest = INFINITY;
};

struct Baselines {
  Errors mean, linear;
};

// A feature count that a method cannot have (h01 needs d + 2 columns) leaves its cell out.
bool feasible(const nn::DotProductKernel& kernel, const nn::FeatureSettings& settings,
              std::string& reason) {
  try {
    (void)nn::feature_plan(kernel, settings);
    return true;
  } catch (const Error& e) {
    reason = e.what();
    return false;
  }
}

class LengthRun {
 public:
  LengthRun(const NmseSettings& settings, int64_t n) : s_(settings), n_(n) {}

  struct Column {
    std::string kernel, draws;
    nn::FeatureSettings features;
    nn::FeaturePlan plan;
    Cell cell;
  };

  void add_column(const std::string& kernel, const std::string& draws, int64_t features,
                  const std::function<void(const std::string&)>& note) {
    nn::FeatureSettings f;
    f.method = nn::draw_method(draws);
    f.features = features;
    f.head_dim = s_.dim;
    f.p = s_.p;
    f.logit_scale = s_.logit_scale;
    const nn::DotProductKernel k = nn::dot_product_kernel(kernel);
    std::string reason;
    if (!feasible(k, f, reason)) {
      note(fmt::format("left out: {} with D = {}: {}", draws, features, reason));
      return;
    }
    columns_.push_back({kernel, draws, f, nn::feature_plan(k, f), {}});
  }

  int64_t columns() const { return static_cast<int64_t>(columns_.size()); }

  bool repeat(int64_t r, const std::function<bool(const std::string&)>& progress) {
    const Data data = make_data(s_, n_, r);
    time_softmax(data, r);
    std::map<std::string, AttentionResult> exact;
    for (size_t c = 0; c < columns_.size(); ++c) {
      Column& column = columns_[c];
      const nn::DotProductKernel kernel = nn::dot_product_kernel(column.kernel);
      if (!exact.contains(column.kernel)) {
        exact[column.kernel] = run_exact(kernel, scale(), data.inputs, data.cotangent);
        measure_baselines(kernel, data, exact[column.kernel]);
      }
      measure_rmfa(column, kernel, data, exact[column.kernel], r, static_cast<uint32_t>(c));
      if (!progress(fmt::format("n {} {} {} D {}", n_, column.kernel, column.draws,
                                column.features.features)))
        return false;
    }
    return true;
  }

  std::vector<NmseRow> rows(int64_t repeats) const {
    std::vector<NmseRow> list;
    for (const Column& c : columns_) {
      const Baselines& base = baselines_.at(c.kernel);
      NmseRow row;
      row.kernel = c.kernel;
      row.draws = c.draws;
      row.length = n_;
      row.features = c.features.features;
      row.rmfa = log_error(c.cell.errors.out);
      row.mean = log_error(base.mean.out);
      row.linear = log_error(base.linear.out);
      row.rmfa_gradients = c.cell.errors.gradient_errors();
      row.mean_gradients = base.mean.gradient_errors();
      row.linear_gradients = base.linear.gradient_errors();
      row.rmfa_ms = median(c.cell.rmfa_ms);
      row.draw_ms = median(c.cell.draw_ms);
      row.softmax_ms = median(softmax_ms_);
      row.plain_ms = median(plain_ms_);
      row.unsafe_denominators = c.cell.unsafe;
      row.smallest_ratio = c.cell.smallest;
      row.repeats = repeats;
      list.push_back(row);
    }
    return list;
  }

 private:
  double scale() const { return s_.logit_scale / std::sqrt(static_cast<double>(s_.dim)); }

  // The first repeat warms caches and allocators up before it is timed.
  void time_softmax(const Data& data, int64_t r) {
    const NoGrad off;
    const Inputs& in = data.inputs;
    const auto blockwise = [&] {
      (void)softmax_attention(in.q, in.k, in.v, AttentionMask{}, scale());
    };
    if (r == 0) blockwise();
    softmax_ms_.push_back(timed(device_of(s_.common), blockwise));
    if (plain_bytes(in) > 0.25 * memory_bytes() || r >= kPlainRepeats) return;
    const auto plain = [&] { (void)plain_softmax_attention(in.q, in.k, in.v, scale()); };
    if (r == 0) plain();
    plain_ms_.push_back(timed(device_of(s_.common), plain));
  }

  void measure_baselines(const nn::DotProductKernel& kernel, const Data& data,
                         const AttentionResult& exact) {
    Baselines& base = baselines_[kernel.name()];
    base.mean.add(run(mean_of_values, data.inputs, data.cotangent), exact);
    base.linear.add(
        run([&](const Variable& q, const Variable& k,
                const Variable& v) { return linear_attention(kernel, scale(), q, k, v); },
            data.inputs, data.cotangent),
        exact);
  }

  void measure_rmfa(Column& column, const nn::DotProductKernel& kernel, const Data& data,
                    const AttentionResult& exact, int64_t r, uint32_t index) {
    nn::FeatureDraw draw;
    const DrawKey key{seed_of(s_, n_), kDrawStream, index, static_cast<uint32_t>(r)};
    const double draw_ms = timed(device_of(s_.common), [&] {
      draw = nn::draw_features(kernel, column.features, column.plan, key, dtype_of(s_.common));
      draw.omega = draw.omega.to(device_of(s_.common));
      draw.weight = draw.weight.to(device_of(s_.common));
    });
    const Inputs& in = data.inputs;
    Tensor statistics;
    AttentionResult result;
    const auto forward = [&] {
      const NoGrad off;
      result.out = rmfa_of(draw, in.q, in.k, in.v, &statistics).value();
    };
    if (r == 0) forward();
    column.cell.rmfa_ms.push_back(timed(device_of(s_.common), forward));
    column.cell.draw_ms.push_back(draw_ms);
    if (data.cotangent.defined())
      result = run([&](const Variable& q, const Variable& k,
                       const Variable& v) { return rmfa_of(draw, q, k, v, nullptr); },
                   in, data.cotangent);
    column.cell.errors.add(result, exact);
    const RmfaStatistics seen = read_statistics(statistics);
    column.cell.unsafe += seen.floored;
    column.cell.smallest = std::min(column.cell.smallest, seen.smallest_ratio);
  }

  static constexpr int64_t kPlainRepeats = 5;  // the slow form is timed a few times only

  const NmseSettings& s_;
  int64_t n_;
  std::vector<Column> columns_;
  std::map<std::string, Baselines> baselines_;
  std::vector<double> softmax_ms_, plain_ms_;
};

}  // namespace

LogError log_error(const std::vector<double>& errors) {
  if (errors.empty()) return {kMissing, kMissing};
  const auto n = static_cast<double>(errors.size());
  double mean = 0, squares = 0;
  for (double e : errors) mean += e / n;
  for (double e : errors) squares += (e - mean) * (e - mean);
  const double se = errors.size() > 1 ? std::sqrt(squares / (n - 1) / n) : kMissing;
  return {std::log10(mean), se / (mean * M_LN10)};
}

double NmseRow::speedup() const {
  return std::log10(softmax_ms / (rmfa_ms + draw_ms));
}
double NmseRow::speedup_plain() const {
  return std::log10(plain_ms / (rmfa_ms + draw_ms));
}

bool measure(const NmseSettings& settings, const CellProgress& progress,
             const std::function<void(const std::vector<NmseRow>&)>& on_length,
             const std::function<void(const std::string&)>& note) {
  const auto columns = static_cast<int64_t>(settings.kernels.size() * settings.draws.size() *
                                            settings.features.size());
  const int64_t all = columns * settings.repeats * static_cast<int64_t>(settings.lengths.size());
  int64_t done = 0;
  for (size_t i = 0; i < settings.lengths.size(); ++i) {
    LengthRun run(settings, settings.lengths[i]);
    for (const std::string& kernel : settings.kernels)
      for (const std::string& draws : settings.draws)
        for (int64_t features : settings.features)
          run.add_column(
              kernel, draws, features, i == 0 ? note : [](const std::string&) {});
    require(run.columns() > 0, "no draw method fits any of the --features; see the notes above");
    for (int64_t r = 0; r < settings.repeats; ++r)
      if (!run.repeat(r, [&](const std::string& what) { return progress(++done, all, what); })) {
        if (r > 0) on_length(run.rows(r));
        return false;
      }
    on_length(run.rows(settings.repeats));
  }
  return true;
}

}  // namespace macgrad::experiments
