// The recurrences of truncated power series: nn/README.md, equation (4).
#include "macgrad/nn/power_series.h"

#include <algorithm>
#include <cmath>

namespace macgrad::nn {

void PowerSeries::check(const PowerSeries& a, const PowerSeries& b, const char* op) {
  require(a.c_.size() == b.c_.size(), "PowerSeries: {} of degrees {} and {}", op, a.degree(),
          b.degree());
}

PowerSeries PowerSeries::constant(double value, size_t degree) {
  std::vector<double> c(degree + 1, 0.0);
  c[0] = value;
  return PowerSeries(std::move(c));
}

PowerSeries operator*(const PowerSeries& a, const PowerSeries& b) {
  PowerSeries::check(a, b, "*");
  std::vector<double> c(a.c_.size(), 0.0);
  for (size_t k = 0; k < c.size(); ++k) {
    if (a.c_[k] == 0.0) continue;
    for (size_t n = k; n < c.size(); ++n) c[n] += a.c_[k] * b.c_[n - k];
  }
  return PowerSeries(std::move(c));
}

PowerSeries operator/(const PowerSeries& a, const PowerSeries& b) {
  PowerSeries::check(a, b, "/");
  require(b.c_[0] != 0.0, "PowerSeries: division by a series that is {} at 0", b.c_[0]);
  std::vector<double> c(a.c_.size());
  const size_t last = b.last_nonzero();
  for (size_t n = 0; n < c.size(); ++n) {
    double sum = a.c_[n];
    for (size_t k = 1; k <= std::min(n, last); ++k) sum -= b.c_[k] * c[n - k];
    c[n] = sum / b.c_[0];
  }
  return PowerSeries(std::move(c));
}

PowerSeries operator/(double a, const PowerSeries& b) {
  return PowerSeries::constant(a, b.degree()) / b;
}

PowerSeries exp(const PowerSeries& a) {
  std::vector<double> c(a.c_.size());
  const size_t last = a.last_nonzero();
  c[0] = std::exp(a.c_[0]);
  for (size_t n = 1; n < c.size(); ++n) {
    double sum = 0.0;
    for (size_t k = 1; k <= std::min(n, last); ++k)
      sum += static_cast<double>(k) * a.c_[k] * c[n - k];
    c[n] = sum / static_cast<double>(n);
  }
  return PowerSeries(std::move(c));
}

PowerSeries log(const PowerSeries& a) {
  require(a.c_[0] > 0.0, "PowerSeries: log of a series that is {} at 0", a.c_[0]);
  std::vector<double> c(a.c_.size());
  const size_t last = a.last_nonzero();
  c[0] = std::log(a.c_[0]);
  for (size_t n = 1; n < c.size(); ++n) {
    double sum = 0.0;
    for (size_t k = 1; k <= std::min(n - 1, last); ++k)
      sum += static_cast<double>(n - k) * c[n - k] * a.c_[k];
    c[n] = (a.c_[n] - sum / static_cast<double>(n)) / a.c_[0];
  }
  return PowerSeries(std::move(c));
}

PowerSeries pow(const PowerSeries& a, double r) {
  if (r >= 0.0 && r <= 1024.0 && r == std::floor(r)) return pow(a, static_cast<int>(r));
  require(a.c_[0] > 0.0, "PowerSeries: power {} of a series that is {} at 0", r, a.c_[0]);
  std::vector<double> c(a.c_.size());
  const size_t last = a.last_nonzero();
  c[0] = std::pow(a.c_[0], r);
  for (size_t n = 1; n < c.size(); ++n) {
    double sum = 0.0;
    for (size_t k = 1; k <= std::min(n, last); ++k)
      sum += (r * static_cast<double>(k) - static_cast<double>(n - k)) * a.c_[k] * c[n - k];
    c[n] = sum / (static_cast<double>(n) * a.c_[0]);
  }
  return PowerSeries(std::move(c));
}

PowerSeries pow(const PowerSeries& a, int r) {
  if (r < 0) return 1.0 / pow(a, -r);
  PowerSeries result = PowerSeries::constant(1.0, a.degree());
  for (PowerSeries base = a; r > 0; r /= 2) {
    if (r % 2 == 1) result = result * base;
    if (r > 1) base = base * base;
  }
  return result;
}

}  // namespace macgrad::nn
