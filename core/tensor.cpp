// Storage, views, copies and casts. A Tensor is a view of shared storage; every write through one
// moves the storage's version on.
#include "macgrad/core/tensor.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/core/kernels/random.h"

namespace macgrad {

Storage::Storage(size_t bytes, Device device)
    : bytes_(bytes), device_(device), data_(allocate(bytes, device)) {}
Storage::~Storage() {
  release(data_, bytes_, device_);
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  auto bytes = static_cast<int64_t>(item_size(dtype));
  for (int64_t extent : shape) {
    require(extent >= 0, "[empty] shape {} has a negative extent", shape);
    require(!__builtin_mul_overflow(bytes, std::max<int64_t>(extent, 1), &bytes),
            "[empty] shape {} of {} has more bytes than 63 bits count", shape, name(dtype));
  }
  Tensor t;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.dtype_ = dtype;
  t.storage_ =
      std::make_shared<Storage>(static_cast<size_t>(shape.numel()) * item_size(dtype), device);
  return t;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  kernels::fill(t, value);
  return t;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  return full(shape, 0.0, dtype, device);
}

Tensor Tensor::scalar(double value, DType dtype, Device device) {
  return full({}, value, dtype, device);
}

Tensor Tensor::arange(int64_t n, DType dtype, Device device) {
  std::vector<int64_t> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = i;
  return from_vector(values, {n}, device).to(dtype);
}

Tensor Tensor::rand(const Shape& shape, Generator& generator, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  kernels::random_uniform(t, generator.draw());
  return t;
}

Tensor Tensor::rand(const Shape& shape, uint64_t seed, DType dtype, Device device) {
  Generator generator(seed);
  return rand(shape, generator, dtype, device);
}

Tensor Tensor::randn(const Shape& shape, Generator& generator, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  kernels::random_normal(t, generator.draw());
  return t;
}

Tensor Tensor::randn(const Shape& shape, uint64_t seed, DType dtype, Device device) {
  Generator generator(seed);
  return randn(shape, generator, dtype, device);
}

template <class T>
Tensor Tensor::from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  require(static_cast<int64_t>(values.size()) == shape.numel(),
          "[from_vector] {} values do not fill shape {}", values.size(), shape);
  Tensor t = empty(shape, dtype_of<T>());
  std::copy(values.begin(), values.end(), static_cast<T*>(t.raw()));
  return t.to(device);
}
template Tensor Tensor::from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor Tensor::from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor Tensor::from_vector(const std::vector<int64_t>&, const Shape&, Device);
template Tensor Tensor::from_vector(const std::vector<bool>&, const Shape&, Device);

Tensor Tensor::from_values(std::span<const double> values, const Shape& shape, DType dtype,
                           Device device) {
  return from_vector(std::vector<double>(values.begin(), values.end()), shape).to(dtype).to(device);
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != step) return shape_.numel() == 0;
    step *= shape_[i];
  }
  return true;
}

void* Tensor::raw() const {
  require(defined(), "an undefined tensor has no data");
  return static_cast<char*>(storage_->data()) + offset_ * static_cast<int64_t>(item_size(dtype_));
}

template <class T>
T* Tensor::data() const {
  require(dtype_ == dtype_of<T>(), "data<{}>() on a tensor of {}", name(dtype_of<T>()),
          name(dtype_));
  return static_cast<T*>(raw());
}
template float* Tensor::data() const;
template double* Tensor::data() const;
template bfloat16* Tensor::data() const;
template int64_t* Tensor::data() const;
template bool* Tensor::data() const;

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides, int64_t offset) const {
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = strides;
  t.offset_ = offset;
  return t;
}

namespace {

// One extent of -1 is what the others leave.
Shape resolve(const char* op, const Shape& wanted, int64_t numel) {
  int unknown = -1;
  int64_t known = 1;
  for (int i = 0; i < wanted.rank(); ++i) {
    if (wanted[i] == -1 && unknown < 0) {
      unknown = i;
    } else {
      require(wanted[i] >= 0, "[{}] shape {} has a negative extent beside one of -1", op, wanted);
      known *= wanted[i];
    }
  }
  require(unknown < 0 || known > 0, "[{}] the -1 in shape {} is not decided: another extent is 0",
          op, wanted);
  Shape shape = wanted;
  if (unknown >= 0) shape[unknown] = numel / known;
  return shape;
}

// Strides of `shape` over the same elements, or nothing when a copy is needed: each run of input
// dimensions that lies evenly in memory may be cut anew.
bool view_strides(const Shape& from, const Shape& strides, const Shape& to, Shape& result) {
  result = Shape::filled(to.rank(), 0);
  if (from.numel() == 0) {
    result = contiguous_strides(to);
    return true;
  }
  int j = to.rank() - 1;
  int i = from.rank() - 1;
  while (i >= 0 || j >= 0) {
    while (i >= 0 && from[i] == 1) --i;
    if (i < 0) {
      for (; j >= 0; --j) result[j] = 1;
      return true;
    }
    // The run of dimensions first..i that is even in memory.
    const int64_t unit = strides[i];
    int64_t count = from[i];
    int first = i;
    while (first > 0 &&
           (from[first - 1] == 1 || (count != 0 && strides[first - 1] == unit * count))) {
      --first;
      count *= from[first];
    }
    int64_t used = 1;
    while (j >= 0 && used * to[j] <= count && count % (used * to[j]) == 0) {
      result[j] = unit * used;
      used *= to[j];
      --j;
      if (used == count) break;
    }
    if (used != count) return false;
    i = first - 1;
    while (j >= 0 && to[j] == 1) {
      result[j] = 1;
      --j;
    }
  }
  return true;
}

}  // namespace

Tensor Tensor::view(const Shape& wanted) const {
  const Shape shape = resolve("view", wanted, numel());
  require(shape.numel() == numel(), "[view] shape {} of {} elements does not fit {}", shape_,
          numel(), wanted);
  Shape strides;
  require(view_strides(shape_, strides_, shape, strides),
          "[view] shape {} with strides {} cannot be seen as {}; call contiguous() first", shape_,
          strides_, shape);
  return as_strided(shape, strides, offset_);
}

Tensor Tensor::reshape(const Shape& wanted) const {
  const Shape shape = resolve("reshape", wanted, numel());
  require(shape.numel() == numel(), "[reshape] shape {} of {} elements does not fit {}", shape_,
          numel(), wanted);
  Shape strides;
  if (view_strides(shape_, strides_, shape, strides)) return as_strided(shape, strides, offset_);
  return contiguous().view(shape);
}

Tensor Tensor::permute(std::span<const int> dims) const {
  require(static_cast<int>(dims.size()) == rank(), "[permute] {} dimensions for shape {}",
          dims.size(), shape_);
  Shape shape = shape_;
  Shape strides = strides_;
  std::array<bool, kMaxRank> seen{};
  for (int i = 0; i < rank(); ++i) {
    const int d = normalize_dim(dims[static_cast<size_t>(i)], rank(), "permute");
    require(!seen[static_cast<size_t>(d)], "[permute] dimension {} is named twice", d);
    seen[static_cast<size_t>(d)] = true;
    shape[i] = shape_[d];
    strides[i] = strides_[d];
  }
  return as_strided(shape, strides, offset_);
}

Tensor Tensor::transpose(int dim0, int dim1) const {
  dim0 = normalize_dim(dim0, rank(), "transpose");
  dim1 = normalize_dim(dim1, rank(), "transpose");
  Shape shape = shape_;
  Shape strides = strides_;
  std::swap(shape[dim0], shape[dim1]);
  std::swap(strides[dim0], strides[dim1]);
  return as_strided(shape, strides, offset_);
}

Tensor Tensor::expand(const Shape& shape) const {
  require(broadcasts_to(shape_, shape), "[expand] shape {} does not expand to {}", shape_, shape);
  Shape strides = Shape::filled(shape.rank(), 0);
  const int lead = shape.rank() - rank();
  for (int i = 0; i < rank(); ++i)
    strides[lead + i] = shape_[i] == shape[lead + i] ? strides_[i] : 0;
  return as_strided(shape, strides, offset_);
}

Tensor Tensor::slice(int dim, int64_t start, int64_t end, int64_t step) const {
  dim = normalize_dim(dim, rank(), "slice");
  require(step >= 1, "[slice] step {} must be at least 1", step);
  require(0 <= start && start <= end && end <= shape_[dim],
          "[slice] range {}:{} is outside dimension {} of {}", start, end, dim, shape_);
  return as_strided(shape_.with(dim, (end - start + step - 1) / step),
                    strides_.with(dim, strides_[dim] * step), offset_ + start * strides_[dim]);
}

Tensor Tensor::select(int dim, int64_t index) const {
  dim = normalize_dim(dim, rank(), "select");
  require(0 <= index && index < shape_[dim], "[select] index {} is outside dimension {} of {}",
          index, dim, shape_);
  return as_strided(shape_.erased(dim), strides_.erased(dim), offset_ + index * strides_[dim]);
}

Tensor Tensor::unsqueeze(int dim) const {
  dim = normalize_dim(dim, rank() + 1, "unsqueeze");
  const int64_t stride = dim < rank() ? strides_[dim] * shape_[dim] : 1;
  return as_strided(shape_.inserted(dim, 1), strides_.inserted(dim, stride), offset_);
}

Tensor Tensor::squeeze(int dim) const {
  dim = normalize_dim(dim, rank(), "squeeze");
  require(shape_[dim] == 1, "[squeeze] dimension {} of {} is not 1", dim, shape_);
  return as_strided(shape_.erased(dim), strides_.erased(dim), offset_);
}

Tensor Tensor::contiguous() const {
  return is_contiguous() ? *this : clone();
}

Tensor Tensor::clone() const {
  Tensor t = empty(shape_, dtype_, device());
  kernels::copy(*this, t);
  return t;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  Tensor t = empty(shape_, dtype, device());
  kernels::copy(*this, t);
  return t;
}

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  const Tensor source = contiguous();
  Tensor t = empty(shape_, dtype_, device);
  copy_bytes(t.raw(), device, source.raw(), source.device(), source.bytes());
  return t;
}

void Tensor::copy_from(const Tensor& source) const {
  kernels::copy(source.to(device()).expand(shape_), *this);
}

void Tensor::fill(double value) const {
  kernels::fill(*this, value);
}

double Tensor::item() const {
  require(defined() && numel() == 1, "[item] needs one element, shape is {}", shape_);
  return to_vector<double>()[0];
}

double Tensor::at(std::initializer_list<int64_t> index) const {
  require(static_cast<int>(index.size()) == rank(), "[at] {} indices for shape {}", index.size(),
          shape_);
  Tensor t = *this;
  for (int64_t i : index) t = t.select(0, i);
  return t.item();
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const Tensor t = to(kCpu).contiguous().to(dtype_of<T>());
  const T* p = t.data<T>();
  return std::vector<T>(p, p + t.numel());
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;
template std::vector<bool> Tensor::to_vector() const;

namespace {

constexpr int64_t kPrintEdge = 3;   // elements shown at each end of a long dimension
constexpr int64_t kPrintLong = 12;  // a dimension longer than this is shortened

std::string values_text(const Tensor& t, int precision, int indent) {
  if (t.rank() == 0) {
    if (is_floating(t.dtype())) return fmt::format("{:.{}g}", t.item(), precision);
    if (t.dtype() == DType::boolean) return t.item() != 0 ? "true" : "false";
    return fmt::format("{}", static_cast<int64_t>(t.item()));
  }
  std::vector<std::string> parts;
  const int64_t n = t.size(0);
  for (int64_t i = 0; i < n; ++i) {
    if (n > kPrintLong && i == kPrintEdge) {
      parts.emplace_back("...");
      i = n - kPrintEdge;
    }
    parts.push_back(values_text(t.select(0, i), precision, indent + 1));
  }
  const std::string separator =
      t.rank() == 1 ? ", " : ",\n" + std::string(static_cast<size_t>(indent) + 1, ' ');
  return fmt::format("[{}]", fmt::join(parts, separator));
}

}  // namespace

std::string Tensor::text(int precision) const {
  if (!defined()) return "undefined tensor";
  return fmt::format("{}\n{} {} on {}", values_text(to(kCpu), precision, 0), name(dtype_), shape_,
                     macgrad::text(device()));
}

double max_abs_difference(const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape(), "[max_abs_difference] shapes {} and {} differ", a.shape(),
          b.shape());
  const auto x = a.to_vector<double>();
  const auto y = b.to_vector<double>();
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    // Equal infinities agree; a NaN on either side is a difference without bound.
    if (x[i] == y[i]) continue;
    const double d = std::fabs(x[i] - y[i]);
    worst = d <= worst ? worst : (std::isnan(d) ? INFINITY : d);
  }
  return worst;
}

bool all_finite(const Tensor& t) {
  if (!is_floating(t.dtype())) return true;
  const auto x = t.to_vector<double>();
  return std::all_of(x.begin(), x.end(), [](double v) { return std::isfinite(v); });
}

}  // namespace macgrad
