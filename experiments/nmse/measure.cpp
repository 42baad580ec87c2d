// The loops over kernels, lengths, maps and D. Data and draws have separate random streams, and all
// maps see the same data, so that a row does not depend on which others are measured. A map that
// cannot have some D, or cannot estimate a kernel, leaves its rows out with a note.
#include "macgrad/experiments/nmse/measure.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "macgrad/autograd/ops.h"
#include "macgrad/experiments/common/attention_options.h"
#include "macgrad/experiments/nmse/attention.h"

namespace macgrad::experiments {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
constexpr uint32_t kDataStream = 1;

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
  std::vector<double> draw_ms, linear_ms;
  int64_t unsafe = 0;
  double smallest = INFINITY;
};

struct Baselines {
  Errors mean, taylor1;
};

// One feature map with one D.
struct Column {
  Column(const nn::AttentionSettings& settings, uint64_t seed, int64_t heads, int64_t dim)
      : kernel(settings.kernel),
        random(seed),
        scale(nullptr, "scale", settings.logit_scale, false, settings.kernel.radius(), dim),
        map(nn::make_feature_map(nullptr, "map", settings,
                                 {nn::AttentionRole::cross, heads, dim, &random}, &scale)) {}

  nn::PairKernel kernel;
  nn::ModelRandom random;
  nn::LogitScale scale;
  std::unique_ptr<nn::FeatureMap> map;
  NmseRow row;  // what names it
  Cell cell;
};

class LengthRun {
 public:
  LengthRun(const NmseSettings& settings, int64_t n) : s_(settings), n_(n) {}

  void add_column(const std::string& kernel, const nn::FeatureMapKind& map,
                  const std::string& matrix, const std::string& draws, int64_t features,
                  const std::function<void(const std::string&)>& note) {
    nn::AttentionSettings a;
    a.kernel = nn::pair_kernel(kernel);
    a.map = map;
    a.logit_scale = s_.logit_scale;
    a.features = features;
    a.p = s_.p;
    // unit_rows_given stays off: it would drop the weight of keys, which is constant on unit rows,
    // and with it the part of dK along k, which exact attention has.
    NmseRow row;
    row.kernel = kernel;
    row.map = map.name;
    if (!draws.empty()) a.draws = nn::draw_method(draws);
    row.draws = draws;
    if (!matrix.empty()) {
      a.matrix = matrix_named(matrix);
      row.matrix = a.matrix ? a.matrix->name : map.matrix;
    }
    row.length = n_;
    try {
      auto column = std::make_unique<Column>(a, seed_of(s_, n_), s_.heads, s_.dim);
      row.features = column->map->columns();
      column->row = row;
      columns_.push_back(std::move(column));
    } catch (const Error& error) {
      note(fmt::format("left out: {} {}{} with D = {}: {}", map.name, row.matrix, draws, features,
                       error.what()));
    }
  }

  int64_t columns() const { return static_cast<int64_t>(columns_.size()); }

  bool repeat(int64_t r, const std::function<bool(const std::string&)>& progress) {
    const Data data = make_data(s_, n_, r);
    time_softmax(data, r);
    std::map<std::string, AttentionResult> exact;
    for (const auto& column : columns_) {
      const std::string& kernel = column->row.kernel;
      if (!exact.contains(kernel)) {
        exact[kernel] = run_exact(column->kernel, s_.logit_scale, data.inputs, data.cotangent);
        measure_baselines(column->kernel, data, exact[kernel]);
      }
      measure_map(*column, data, exact[kernel], r);
      if (!progress(
              fmt::format("n {} {} {} D {}", n_, kernel, column->row.map, column->row.features)))
        return false;
    }
    return true;
  }

  std::vector<NmseRow> rows(int64_t repeats) const {
    std::vector<NmseRow> list;
    for (const auto& c : columns_) {
      const Baselines& base = baselines_.at(c->kernel.name());
      NmseRow row = c->row;
      row.approximate = log_error(c->cell.errors.out);
      row.mean = log_error(base.mean.out);
      row.taylor1 = log_error(base.taylor1.out);
      row.approximate_gradients = c->cell.errors.gradient_errors();
      row.mean_gradients = base.mean.gradient_errors();
      row.taylor1_gradients = base.taylor1.gradient_errors();
      row.linear_ms = median(c->cell.linear_ms);
      row.draw_ms = median(c->cell.draw_ms);
      row.softmax_ms = median(softmax_ms_);
      row.plain_ms = median(plain_ms_);
      row.unsafe_denominators = c->cell.unsafe;
      row.smallest_ratio = c->cell.smallest;
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

  void measure_baselines(const nn::PairKernel& kernel, const Data& data,
                         const AttentionResult& exact) {
    Baselines& base = baselines_[kernel.name()];
    base.mean.add(run(mean_of_values, data.inputs, data.cotangent), exact);
    base.taylor1.add(
        run([&](const Variable& q, const Variable& k,
                const Variable& v) { return taylor1(kernel.function(), scale(), q, k, v); },
            data.inputs, data.cotangent),
        exact);
  }

  void measure_map(Column& column, const Data& data, const AttentionResult& exact, int64_t r) {
    const Inputs& in = data.inputs;
    Tensor statistics;
    AttentionResult result;
    const auto attention = [&](const Variable& q, const Variable& k, const Variable& v) {
      return column.map->attend(q, k, v, Variable(), {}, /*delta=*/0.0, &statistics);
    };
    const auto forward = [&] { result = run(attention, in, Variable()); };
    if (r == 0) forward();
    column.cell.draw_ms.push_back(timed(device_of(s_.common), [&] {
      column.map->begin_step(static_cast<uint32_t>(r) + 1, 0);
      column.map->prepare(dtype_of(s_.common), device_of(s_.common));
    }));
    column.cell.linear_ms.push_back(timed(device_of(s_.common), forward));
    if (data.cotangent.defined()) result = run(attention, in, data.cotangent);
    column.cell.errors.add(result, exact);
    const DenominatorStatistics seen = read_statistics(statistics);
    column.cell.unsafe += seen.floored;
    column.cell.smallest = std::min(column.cell.smallest, seen.smallest_ratio);
  }

  static constexpr int64_t kPlainRepeats = 5;  // the slow form is timed a few times only

  const NmseSettings& s_;
  int64_t n_;
  std::vector<std::unique_ptr<Column>> columns_;
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
  return std::log10(softmax_ms / (linear_ms + draw_ms));
}
double NmseRow::speedup_plain() const {
  return std::log10(plain_ms / (linear_ms + draw_ms));
}

std::vector<MapChoice> map_choices(const NmseSettings& settings) {
  std::vector<MapChoice> choices;
  for (const std::string& name : settings.maps) {
    nn::AttentionSettings a;
    a.kind = nn::attention_kind("linear");
    a.map = nn::feature_map(name);
    const std::vector<std::string> none{""};
    // A map without --features has one number of columns.
    const std::vector<int64_t> features =
        a.reads("features") ? settings.features : std::vector<int64_t>{settings.dim};
    for (const std::string& matrix : a.reads("matrix") ? settings.matrices : none)
      for (const std::string& draws : a.reads("draws") ? settings.draws : none)
        choices.push_back({&nn::feature_map(name), matrix, draws, features});
  }
  return choices;
}

bool measure(const NmseSettings& settings, const CellProgress& progress,
             const std::function<void(const std::vector<NmseRow>&)>& on_length,
             const std::function<void(const std::string&)>& note) {
  int64_t done = 0;
  for (size_t i = 0; i < settings.lengths.size(); ++i) {
    LengthRun run(settings, settings.lengths[i]);
    for (const std::string& kernel : settings.kernels)
      for (const MapChoice& choice : map_choices(settings))
        for (int64_t features : choice.features)
          run.add_column(
              kernel, *choice.map, choice.matrix, choice.draws, features,
              i == 0 ? note : [](const std::string&) {});
    require(run.columns() > 0,
            "no map fits any of the --kernel and --features; see the notes above");
    const int64_t all =
        run.columns() * settings.repeats * static_cast<int64_t>(settings.lengths.size());
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
