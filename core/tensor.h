// Tensor: data only. Shared storage, shape, strides in elements, offset, dtype, device. Views share
// storage; nothing here computes (ops exist once, on Variables) beyond moving data: copies, casts
// and fills.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "macgrad/core/allocator.h"
#include "macgrad/core/dtype.h"
#include "macgrad/core/shape.h"

namespace macgrad {

class Generator;

/// One block of memory and a version that every in-place write raises, so that a tape which saved
/// an older version can tell.
class Storage {
 public:
  Storage(size_t bytes, Device device);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  uint64_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  size_t bytes_;
  Device device_;
  void* data_;
  uint64_t version_ = 0;
};

class Tensor {
 public:
  /// Undefined: no storage. defined() is false and most members throw.
  Tensor() = default;

  /// Uninitialised, contiguous.
  static Tensor empty(const Shape& shape, DType dtype = DType::float32, Device device = kCpu);
  static Tensor zeros(const Shape& shape, DType dtype = DType::float32, Device device = kCpu);
  /// Every element `value`, converted to `dtype`.
  static Tensor full(const Shape& shape, double value, DType dtype = DType::float32,
                     Device device = kCpu);
  /// 0-dimensional.
  static Tensor scalar(double value, DType dtype = DType::float32, Device device = kCpu);
  /// 0, 1, …, n-1.
  static Tensor arange(int64_t n, DType dtype = DType::int64, Device device = kCpu);
  /// Uniform in [0, 1) (rand) and normal with mean 0 and variance 1 (randn), of a floating dtype.
  /// The key is the generator's next draw, or the first draw of Generator(seed): equal seeds give
  /// equal values on every device and at any thread count (core/generator.h). An Error for other
  /// dtypes.
  static Tensor rand(const Shape& shape, Generator& generator, DType dtype = DType::float32,
                     Device device = kCpu);
  static Tensor rand(const Shape& shape, uint64_t seed, DType dtype = DType::float32,
                     Device device = kCpu);
  static Tensor randn(const Shape& shape, Generator& generator, DType dtype = DType::float32,
                      Device device = kCpu);
  static Tensor randn(const Shape& shape, uint64_t seed, DType dtype = DType::float32,
                      Device device = kCpu);
  /// Copies values.size() == shape.numel() elements; dtype follows T.
  template <class T>
  static Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = kCpu);
  template <class T>
  static Tensor from_vector(const std::vector<T>& values) {
    return from_vector(values, Shape{static_cast<int64_t>(values.size())});
  }
  /// Float values stored as any dtype.
  static Tensor from_values(std::span<const double> values, const Shape& shape, DType dtype,
                            Device device = kCpu);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  /// Extent; negative dimensions count from the end.
  int64_t size(int dim) const { return shape_.at(dim); }
  int64_t stride(int dim) const { return strides_[normalize_dim(dim, rank(), "stride")]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t offset() const { return offset_; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : kCpu; }
  size_t bytes() const { return static_cast<size_t>(numel()) * item_size(dtype_); }
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  uint64_t version() const { return storage_ ? storage_->version() : 0; }

  /// Pointer to the first element; T must match dtype. The memory lives on device().
  template <class T>
  T* data() const;
  void* raw() const;

  // Views. All share storage and throw an Error naming the op and shapes.
  /// Same elements, other shape; needs strides that allow it (throws otherwise: call contiguous()).
  /// One extent may be -1.
  Tensor view(const Shape& shape) const;
  /// view when possible, else a copy.
  Tensor reshape(const Shape& shape) const;
  Tensor permute(std::span<const int> dims) const;
  Tensor permute(std::initializer_list<int> dims) const {
    return permute(std::span<const int>(dims.begin(), dims.size()));
  }
  Tensor transpose(int dim0, int dim1) const;
  /// Broadcast dimensions get stride 0.
  Tensor expand(const Shape& shape) const;
  /// Elements start, start+step, … < end of `dim`.
  Tensor slice(int dim, int64_t start, int64_t end, int64_t step = 1) const;
  /// Index `dim` away.
  Tensor select(int dim, int64_t index) const;
  Tensor unsqueeze(int dim) const;
  Tensor squeeze(int dim) const;
  /// A raw view; the caller answers for the bounds being inside the storage.
  Tensor as_strided(const Shape& shape, const Shape& strides, int64_t offset) const;

  // Data movement.
  /// This tensor if contiguous, else a contiguous copy.
  Tensor contiguous() const;
  /// Contiguous copy.
  Tensor clone() const;
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;
  /// Overwrites with `source` (broadcast, cast); raises the version.
  void copy_from(const Tensor& source) const;
  /// Overwrites every element; raises the version.
  void fill(double value) const;

  /// The single element as double. Throws unless numel() == 1.
  double item() const;
  /// Element at `index` (one entry a dimension) as double.
  double at(std::initializer_list<int64_t> index) const;
  /// All elements in row-major order, converted to T.
  template <class T>
  std::vector<T> to_vector() const;

  /// Values with shape and dtype, long dimensions shortened.
  std::string text(int precision = 4) const;

 private:
  std::shared_ptr<Storage> storage_;
  Shape shape_;
  Shape strides_;
  int64_t offset_ = 0;
  DType dtype_ = DType::float32;
};

/// Largest |a - b| over all elements, in float64; the shapes must match. For tests and reports.
double max_abs_difference(const Tensor& a, const Tensor& b);
/// True when every element is finite.
bool all_finite(const Tensor& t);

using Tensors = std::vector<Tensor>;

}  // namespace macgrad
