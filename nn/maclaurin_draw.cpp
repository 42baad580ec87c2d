// Degrees, weights and signs of random Maclaurin features, and their record.
#include "nn/maclaurin_draw.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace macgrad::nn {

namespace {

/// Reads signs 32 to a number.
class SignReader {
 public:
  explicit SignReader(DrawReader& reader) : reader_(reader) {}
  double next() {
    if (left_ == 0) {
      bits_ = reader_.bits();
      left_ = 32;
    }
    const double sign = (bits_ >> 31) != 0 ? 1.0 : -1.0;
    bits_ <<= 1;
    --left_;
    return sign;
  }

 private:
  DrawReader& reader_;
  uint32_t bits_ = 0;
  int left_ = 0;
};

class DrawnSource final : public HadamardSource {
 public:
  DrawnSource(DrawReader& reader, SignReader& sign_reader)
      : reader_(reader), sign_reader_(sign_reader) {}
  std::vector<double> signs(int64_t n) override {
    std::vector<double> s(static_cast<size_t>(n));
    for (double& sign : s) sign = sign_reader_.next();
    return s;
  }
  std::vector<int64_t> permutation(int64_t n) override { return reader_.permutation(n); }

 private:
  DrawReader& reader_;
  SignReader& sign_reader_;
};

/// Degrees of the features that have a projection, descending.
std::vector<int64_t> projected_degrees(const DotProductKernel& kernel,
                                       const std::vector<int64_t>& random_degrees) {
  std::vector<int64_t> degrees;
  for (int64_t n : random_degrees)
    if (n > 0 && kernel.coefficient(n) > 0.0) degrees.push_back(n);
  return degrees;
}

/// The random features' part of a stored degree list: without the d ones of an exact linear block
/// and without the zeros of an exact constant and of unused columns.
std::vector<int64_t> random_part(const FeaturePlan& plan, int64_t head_dim,
                                 const std::vector<int64_t>& degrees) {
  std::vector<int64_t> part = degrees;
  if (plan.exact_constant) std::erase(part, 0);
  if (plan.exact_linear) {
    const auto first = std::find(part.begin(), part.end(), 1);
    part.erase(first, first + std::min<int64_t>(head_dim, part.end() - first));
  }
  return part;
}

/// Fills omega (H, d, P) or (d, P) from what `reader` still holds.
Tensor draw_signs(const FeatureDraw& draw, const std::vector<int64_t>& degrees, DrawReader& reader,
                  DType dtype) {
  const int64_t d = draw.settings.head_dim;
  const int64_t heads = draw.settings.heads;
  const int64_t P = draw.projections();
  std::vector<int64_t> first_column;
  int64_t column = 0;
  for (int64_t count : draw.levels) {
    first_column.push_back(column);
    column += count;
  }
  std::vector<double> omega(static_cast<size_t>(heads * d * P));
  SignReader signs(reader);
  DrawnSource source(reader, signs);
  for (int64_t h = 0; h < heads; ++h) {
    auto put = [&](size_t feature, int64_t factor, int64_t i, double sign) {
      const int64_t at = first_column[static_cast<size_t>(factor)] + static_cast<int64_t>(feature);
      omega[static_cast<size_t>((h * d + i) * P + at)] = sign;
    };
    for (size_t m = 0; m < degrees.size();) {
      const int64_t n = degrees[m];
      size_t end = m;
      while (end < degrees.size() && degrees[end] == n) ++end;
      if (draw.plan.design == SignDesign::independent) {
        for (; m < end; ++m)
          for (int64_t j = 0; j < n; ++j)
            for (int64_t i = 0; i < d; ++i) put(m, j, i, signs.next());
        continue;
      }
      const auto rows =
          hadamard_signs(d, n, static_cast<int64_t>(end - m), draw.plan.design, source);
      for (size_t f = 0; f < rows.size(); ++f)
        for (int64_t j = 0; j < n; ++j)
          for (int64_t i = 0; i < d; ++i) put(m + f, j, i, rows[f][static_cast<size_t>(j * d + i)]);
      m = end;
    }
  }
  return Tensor::from_values(omega, heads > 1 ? Shape{heads, d, P} : Shape{d, P}, dtype);
}

FeatureDraw finish(FeatureDraw draw, const DotProductKernel& kernel,
                   const std::vector<int64_t>& random_degrees, const DrawKey& key,
                   DrawReader& reader, DType dtype) {
  draw.key = key;
  draw.omega = draw_signs(draw, projected_degrees(kernel, random_degrees), reader, dtype);
  return draw;
}

}  // namespace

int64_t FeatureDraw::projections() const {
  return std::accumulate(levels.begin(), levels.end(), int64_t{0});
}

std::vector<int64_t> draw_degrees(const FeaturePlan& plan, DrawReader& reader) {
  std::vector<int64_t> degrees;
  // survival[i] = P[N >= tail_from + i]; N is the largest degree whose survival reaches v in (0,
  // 1].
  std::vector<double> survival(plan.tail_law.size());
  double sum = 0.0;
  for (size_t i = survival.size(); i-- > 0;) survival[i] = sum += plan.tail_law[i];
  const auto tail = static_cast<double>(plan.tail_count);
  double start = 0.0;
  if (plan.tail_count > 0 && plan.systematic) start = 1.0 - reader.uniform();
  for (int64_t k = 0; k < plan.tail_count; ++k) {
    const double v =
        plan.systematic ? (static_cast<double>(k) + start) / tail : 1.0 - reader.uniform();
    const auto at = std::partition_point(survival.begin(), survival.end(),
                                         [&](double s) { return s / sum >= v; });
    degrees.push_back(plan.tail_from + std::max<int64_t>(at - survival.begin() - 1, 0));
  }
  for (size_t n = 0; n < plan.counts.size(); ++n)
    degrees.insert(degrees.end(), static_cast<size_t>(plan.counts[n]), static_cast<int64_t>(n));
  std::sort(degrees.begin(), degrees.end(), std::greater<>());
  return degrees;
}

DrawBounds draw_bounds(const DotProductKernel& kernel, const FeaturePlan& plan) {
  const auto has_projection = [&](int64_t n) { return n > 0 && kernel.coefficient(n) > 0.0; };
  DrawBounds fixed;
  for (int64_t n = 0; n < std::ssize(plan.counts); ++n) {
    if (!has_projection(n)) continue;
    fixed.features += plan.counts[static_cast<size_t>(n)];
    fixed.projections += n * plan.counts[static_cast<size_t>(n)];
  }
  if (plan.tail_count == 0) return fixed;
  // Of one tail feature: a number with its mean, mean square and largest value.
  struct Law {
    double mean = 0.0, square = 0.0, largest = 0.0;
    void add(double probability, double value) {
      mean += probability * value;
      square += probability * value * value;
      largest = std::max(largest, value);
    }
    int64_t bound(int64_t count) const {
      const auto tail = static_cast<double>(count);
      const double deviation = std::sqrt(tail * std::max(0.0, square - mean * mean));
      return static_cast<int64_t>(
          std::min(std::ceil(tail * mean + 6.0 * deviation), tail * largest));
    }
  } feature, degree;
  for (size_t i = 0; i < plan.tail_law.size(); ++i) {
    const int64_t n = plan.tail_from + static_cast<int64_t>(i);
    if (plan.tail_law[i] <= 0.0 || !has_projection(n)) continue;
    feature.add(plan.tail_law[i], 1.0);
    degree.add(plan.tail_law[i], static_cast<double>(n));
  }
  return {fixed.features + feature.bound(plan.tail_count),
          fixed.projections + degree.bound(plan.tail_count)};
}

FeatureDraw weigh_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                           const FeaturePlan& plan, const std::vector<int64_t>& random_degrees,
                           DType dtype) {
  FeatureDraw draw;
  draw.settings = settings;
  draw.plan = plan;
  const int64_t d = settings.head_dim;
  const double scale = settings.logit_scale / std::sqrt(static_cast<double>(d));
  draw.constant = plan.exact_constant ? kernel.coefficient(0) : 0.0;
  draw.linear = plan.exact_linear ? kernel.coefficient(1) * scale : 0.0;
  std::vector<double> weight;
  for (int64_t n : random_degrees) {
    // The number of features of this degree, or its mean when the degree is random.
    const double count = n < plan.tail_from
                             ? static_cast<double>(plan.counts[static_cast<size_t>(n)])
                             : static_cast<double>(plan.tail_count) *
                                   plan.tail_law[static_cast<size_t>(n - plan.tail_from)];
    const double square = kernel.coefficient(n) * std::pow(scale, static_cast<double>(n)) / count;
    if (n == 0) draw.constant += square;
    if (n > 0 && kernel.coefficient(n) > 0.0) weight.push_back(std::sqrt(square));
  }
  const auto projected = projected_degrees(kernel, random_degrees);
  for (int64_t n : projected) {
    if (static_cast<int64_t>(draw.levels.size()) < n) draw.levels.resize(static_cast<size_t>(n), 0);
    for (int64_t l = 0; l < n; ++l) ++draw.levels[static_cast<size_t>(l)];
  }
  draw.degrees = random_degrees;
  if (plan.exact_linear) draw.degrees.insert(draw.degrees.end(), static_cast<size_t>(d), 1);
  draw.degrees.resize(static_cast<size_t>(settings.features), 0);
  std::sort(draw.degrees.begin(), draw.degrees.end(), std::greater<>());
  draw.weight = Tensor::from_values(weight, Shape{static_cast<int64_t>(weight.size())}, dtype);
  return draw;
}

FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const FeaturePlan& plan, const DrawKey& key, DType dtype) {
  check_domain(kernel, settings.logit_scale, settings.head_dim);
  DrawReader reader(key);
  const std::vector<int64_t> degrees = draw_degrees(plan, reader);
  return finish(weigh_features(kernel, settings, plan, degrees, dtype), kernel, degrees, key,
                reader, dtype);
}

FeatureDraw draw_features(const DotProductKernel& kernel, const FeatureSettings& settings,
                          const DrawKey& key, DType dtype) {
  return draw_features(kernel, settings, feature_plan(kernel, settings), key, dtype);
}

std::vector<std::vector<double>> hadamard_signs(int64_t d, int64_t degree, int64_t count,
                                                SignDesign design, HadamardSource& source) {
  const int64_t size = hadamard_size(d);
  // The first factor is never shifted: for degree 1 every block is a set.
  const int64_t blocks_in_set = design == SignDesign::shifted_blocks && degree > 1 ? size : 1;
  const int64_t set = blocks_in_set * size;
  std::vector<std::vector<double>> rows(static_cast<size_t>(count));
  for (auto& row : rows) row.resize(static_cast<size_t>(degree * d));
  for (int64_t begin = 0; begin < count; begin += set) {
    const int64_t end = std::min(begin + set, count);
    for (int64_t j = 0; j < degree; ++j) {
      const std::vector<double> signs = source.signs(d);
      // A single row needs no order: its signs alone make it uniform.
      std::vector<int64_t> order{0};
      if (end - begin > 1) order = source.permutation(size);
      for (int64_t f = begin; f < end; ++f) {
        const int64_t block = (f - begin) / size;
        const int64_t within = ((f - begin) % size + j * block) % size;
        const auto r = static_cast<uint64_t>(order[static_cast<size_t>(within)]);
        double* out = rows[static_cast<size_t>(f)].data() + j * d;
        for (int64_t i = 0; i < d; ++i) {
          const bool minus = std::popcount(r & static_cast<uint64_t>(i)) % 2 != 0;
          out[i] = minus ? -signs[static_cast<size_t>(i)] : signs[static_cast<size_t>(i)];
        }
      }
    }
  }
  return rows;
}

std::vector<double> reference_features(const FeatureDraw& draw, std::span<const double> x,
                                       int64_t head) {
  const int64_t d = draw.settings.head_dim;
  require(static_cast<int64_t>(x.size()) == d, "[features] reference: x has {} entries, not {}",
          x.size(), d);
  std::vector<double> phi;
  if (draw.constant > 0.0) phi.push_back(std::sqrt(draw.constant));
  if (draw.linear > 0.0)
    for (double value : x) phi.push_back(std::sqrt(draw.linear) * value);
  const Tensor own = draw.omega.rank() == 3 ? draw.omega.select(0, head) : draw.omega;
  const auto omega = own.to_vector<double>();
  const int64_t width = own.size(1);
  std::vector<double> features = draw.weight.to_vector<double>();
  int64_t column = 0;
  for (int64_t level : draw.levels)
    for (int64_t m = 0; m < level; ++m, ++column) {
      double product = 0.0;
      for (int64_t i = 0; i < d; ++i)
        product += x[static_cast<size_t>(i)] * omega[static_cast<size_t>(i * width + column)];
      features[static_cast<size_t>(m)] *= product;
    }
  phi.insert(phi.end(), features.begin(), features.end());
  return phi;
}

std::vector<int64_t> to_record(const FeatureDraw& draw) {
  const FeatureSettings& s = draw.settings;
  const FeaturePlan& plan = draw.plan;
  auto bits = [](double value) { return std::bit_cast<int64_t>(value); };
  std::vector<int64_t> record = {1,
                                 static_cast<int64_t>(s.method),
                                 s.features,
                                 s.head_dim,
                                 s.heads,
                                 bits(s.p),
                                 s.cap,
                                 bits(s.logit_scale),
                                 std::bit_cast<int64_t>(draw.key.seed),
                                 draw.key.stream,
                                 draw.key.draw,
                                 draw.key.step,
                                 plan.exact_linear ? 1 : 0,
                                 plan.tail_from,
                                 plan.tail_count,
                                 bits(plan.logit_scale),
                                 bits(plan.mixture),
                                 0,
                                 0,
                                 0};
  record.insert(record.end(), draw.degrees.begin(), draw.degrees.end());
  return record;
}

FeatureDraw from_record(const DotProductKernel& kernel, std::span<const int64_t> record,
                        DType dtype) {
  auto fail = [&](const char* why) {
    throw Error("[features] a record of {} integers for kernel {}: {}", record.size(),
                kernel.name(), why);
  };
  if (std::ssize(record) < kRecordHeader || record[0] != 1) fail("not a record of a feature draw");
  auto real = [&](size_t at) { return std::bit_cast<double>(record[at]); };
  FeatureSettings s;
  if (record[1] < 0 || record[1] >= std::ssize(draw_method_names())) fail("unknown draw method");
  s.method = static_cast<DrawMethod>(record[1]);
  s.features = record[2];
  s.head_dim = record[3];
  s.heads = record[4];
  s.p = real(5);
  s.cap = record[6];
  s.logit_scale = real(7);
  const DrawKey key{std::bit_cast<uint64_t>(record[8]), static_cast<uint32_t>(record[9]),
                    static_cast<uint32_t>(record[10]), static_cast<uint32_t>(record[11])};
  if (std::ssize(record) != kRecordHeader + s.features) fail("its length is not header + D");
  if (s.head_dim < 1 || s.heads < 1 || s.cap < 2 || s.cap > kMaxDegree) fail("sizes out of range");
  const std::vector<int64_t> degrees(record.begin() + kRecordHeader, record.end());
  if (!std::is_sorted(degrees.begin(), degrees.end(), std::greater<>()) || degrees.back() < 0 ||
      degrees.front() > s.cap)
    fail("degrees out of order or range");

  FeaturePlan plan;
  if (s.method == DrawMethod::optimal) {
    // The search is not run again: its outcome is in the record and in the degrees.
    plan.exact_constant = true;
    plan.systematic = true;
    plan.design = SignDesign::shifted_blocks;
    plan.exact_linear = record[12] == 1;
    plan.tail_from = record[13];
    plan.tail_count = record[14];
    plan.logit_scale = real(15);
    plan.mixture = real(16);
    if (plan.tail_from < 0 || plan.tail_from > s.cap + 1 || plan.tail_count < 0)
      fail("tail out of range");
    if (plan.tail_count > 0)
      plan.tail_law = optimal_tail_law(kernel, s.head_dim, plan.logit_scale, plan.mixture,
                                       plan.tail_from, s.cap);
    plan.counts.assign(static_cast<size_t>(plan.tail_from), 0);
  } else {
    plan = feature_plan(kernel, s);
    plan.logit_scale = real(15);
  }
  const std::vector<int64_t> random_degrees = random_part(plan, s.head_dim, degrees);
  int64_t tail = 0;
  for (int64_t n : random_degrees)
    n < plan.tail_from ? ++plan.counts[static_cast<size_t>(n)] : ++tail;
  if (tail != plan.tail_count) fail("the degrees do not fit the plan");
  // The degrees are stored; their numbers are read again so that the signs start where they did.
  DrawReader reader(key);
  draw_degrees(plan, reader);
  return finish(weigh_features(kernel, s, plan, random_degrees, dtype), kernel, random_degrees, key,
                reader, dtype);
}

}  // namespace macgrad::nn
