// Truncated power series Σ c_n t^n: the number type on which a dot-product kernel's formula is
// evaluated to give its Maclaurin coefficients (nn/README.md). Arithmetic mixes with double;
// exp, log, sqrt and pow use the usual recurrences (Knuth, TAOCP 2, 4.7), O(degree²) each.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "macgrad/core/error.h"

namespace macgrad::nn {

class PowerSeries {
 public:
  /// c_0 … c_degree.
  explicit PowerSeries(std::vector<double> coefficients) : c_(std::move(coefficients)) {
    require(!c_.empty(), "PowerSeries: needs at least {} coefficient", 1);
  }
  /// The series of t itself, up to `degree`.
  static PowerSeries variable(size_t degree) {
    std::vector<double> c(degree + 1, 0.0);
    if (degree > 0) c[1] = 1.0;
    return PowerSeries(std::move(c));
  }

  size_t degree() const { return c_.size() - 1; }
  double operator[](size_t n) const { return c_[n]; }
  const std::vector<double>& coefficients() const { return c_; }

  friend PowerSeries operator-(PowerSeries a) {
    for (double& c : a.c_) c = -c;
    return a;
  }
  friend PowerSeries operator+(PowerSeries a, const PowerSeries& b) {
    check(a, b, "+");
    for (size_t n = 0; n < a.c_.size(); ++n) a.c_[n] += b.c_[n];
    return a;
  }
  friend PowerSeries operator-(PowerSeries a, const PowerSeries& b) {
    check(a, b, "-");
    for (size_t n = 0; n < a.c_.size(); ++n) a.c_[n] -= b.c_[n];
    return a;
  }
  friend PowerSeries operator*(const PowerSeries& a, const PowerSeries& b);
  /// Throws when b_0 = 0: the quotient has no Maclaurin series.
  friend PowerSeries operator/(const PowerSeries& a, const PowerSeries& b);

  friend PowerSeries operator+(PowerSeries a, double b) {
    a.c_[0] += b;
    return a;
  }
  friend PowerSeries operator+(double a, PowerSeries b) { return std::move(b) + a; }
  friend PowerSeries operator-(PowerSeries a, double b) { return std::move(a) + (-b); }
  friend PowerSeries operator-(double a, PowerSeries b) { return -std::move(b) + a; }
  friend PowerSeries operator*(PowerSeries a, double b) {
    for (double& c : a.c_) c *= b;
    return a;
  }
  friend PowerSeries operator*(double a, PowerSeries b) { return std::move(b) * a; }
  friend PowerSeries operator/(PowerSeries a, double b) {
    for (double& c : a.c_) c /= b;
    return a;
  }
  friend PowerSeries operator/(double a, const PowerSeries& b);

  friend PowerSeries exp(const PowerSeries& a);
  /// Throws unless a_0 > 0.
  friend PowerSeries log(const PowerSeries& a);
  /// a^r for a real r; throws unless a_0 > 0 (a whole r works for every a through the int form).
  friend PowerSeries pow(const PowerSeries& a, double r);
  friend PowerSeries pow(const PowerSeries& a, int r);
  /// Throws unless a_0 > 0.
  friend PowerSeries sqrt(const PowerSeries& a) { return pow(a, 0.5); }

 private:
  static PowerSeries constant(double value, size_t degree);
  static void check(const PowerSeries& a, const PowerSeries& b, const char* op);
  size_t last_nonzero() const {
    size_t n = c_.size() - 1;
    while (n > 0 && c_[n] == 0.0) --n;
    return n;
  }

  std::vector<double> c_;
};

}  // namespace macgrad::nn
