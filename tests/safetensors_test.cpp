// safetensors: the same bytes as the Python package's file, round trips, and files that lie.
#include "macgrad/core/safetensors.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace macgrad {
namespace {

namespace fs = std::filesystem;

// A folder of its own, removed at the end.
class Folder {
 public:
  Folder() {
    path_ = fs::temp_directory_path() / fmt::format("macgrad-safetensors-{}", ::getpid());
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }
  size_t count() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path_), {}));
  }

 private:
  fs::path path_;
};

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::map<std::string, Tensor> example() {
  return {
      {"encoder.weight",
       Tensor::from_vector(std::vector<float>{1.5f, -2.0f, 3.25f, 0.0f, 1e-3f, -7.0f}, {2, 3})},
      {"b/double", Tensor::from_vector(std::vector<double>{3.141592653589793, -1e300})},
      {"half", Tensor::from_vector(std::vector<float>{1.0f, -0.5f, 256.0f}).to(DType::bfloat16)},
      {"ids", Tensor::from_vector(std::vector<int64_t>{1, INT64_MIN}, {2, 1})},
      {"mask", Tensor::from_vector(std::vector<bool>{true, false, true})},
      {"a.scalar", Tensor::scalar(2.5)},
      {"empty", Tensor::empty({0, 4})},
      {"quote\"\u00e9\n", Tensor::from_vector(std::vector<float>{7.0f})},
  };
}

void check_same(const std::map<std::string, Tensor>& a, const std::map<std::string, Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    CAPTURE(name);
    REQUIRE(b.count(name) == 1);
    const Tensor& other = b.at(name);
    CHECK(tensor.dtype() == other.dtype());
    REQUIRE(tensor.shape() == other.shape());
    CHECK(tensor.to_vector<double>() == other.to_vector<double>());
    CHECK(tensor.to_vector<int64_t>() == other.to_vector<int64_t>());
  }
}

const std::string kPythonFile = MACGRAD_FIXTURES "/safetensors_python.safetensors";

}  // namespace

TEST_CASE("a file of the Python package is read, and written with the same bytes") {
  const Folder folder;
  const Safetensors python = load_safetensors(kPythonFile);
  check_same(python.tensors, example());
  CHECK(python.metadata == std::map<std::string, std::string>{{"format", "pt"}});

  save_safetensors(folder.file("ours"), example(), {{"format", "pt"}});
  CHECK(bytes_of(folder.file("ours")) == bytes_of(kPythonFile));
  CHECK(folder.count() == 1);
}

TEST_CASE("listing reads the header alone") {
  const SafetensorsHeader header = list_safetensors(kPythonFile);
  CHECK(header.metadata.at("format") == "pt");
  REQUIRE(header.entries.size() == 8);
  CHECK(header.entries[0].name == "ids");
  CHECK(header.entries[0].dtype == DType::int64);
  CHECK(header.entries[0].shape == Shape{2, 1});
  CHECK(header.entries[1].begin == 16);
  CHECK(header.entries[1].end == 32);
  CHECK(header.data_start % 8 == 0);
}

TEST_CASE("views are saved as they look; an empty set of tensors is a file") {
  const Folder folder;
  const Tensor base = Tensor::arange(12, DType::float32).view({3, 4});
  save_safetensors(folder.file("views"), {{"t", base.transpose(0, 1)},
                                          {"s", base.slice(1, 1, 4, 2)},
                                          {"e", base.select(0, 1).unsqueeze(0).expand({2, 4})}});
  const Safetensors loaded = load_safetensors(folder.file("views"));
  CHECK(max_abs_difference(loaded.tensors.at("t"), base.transpose(0, 1)) == 0);
  CHECK(max_abs_difference(loaded.tensors.at("s"), base.slice(1, 1, 4, 2)) == 0);
  CHECK(loaded.tensors.at("e").to_vector<double>() == std::vector<double>{4, 5, 6, 7, 4, 5, 6, 7});
  CHECK(loaded.tensors.at("t").is_contiguous());

  save_safetensors(folder.file("none"), {});
  CHECK(load_safetensors(folder.file("none")).tensors.empty());
}

TEST_CASE("an earlier file survives a failed write, and no temporary file stays") {
  const Folder folder;
  const std::string path = folder.file("weights");
  save_safetensors(path, example());
  const std::string before = bytes_of(path);

  CHECK_THROWS_WITH_AS(save_safetensors(folder.file("no/such/folder"), example()),
                       doctest::Contains("No such file"), Error);
  CHECK_THROWS_AS(save_safetensors(path, {{"\xff\xfe", Tensor::scalar(1)}}), Error);
  CHECK_THROWS_AS(save_safetensors(path, {{"__metadata__", Tensor::scalar(1)}}), Error);
  CHECK_THROWS_AS(save_safetensors(path, {{"undefined", Tensor()}}), Error);

  // A limit on file sizes stands for a full disk: write() fails half way.
  rlimit old_limit;
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old_limit) == 0);
  auto* old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old_limit;
  small.rlim_cur = 64 << 10;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string message;
  try {
    save_safetensors(path, {{"big", Tensor::zeros({1 << 16})}});
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  ::signal(SIGXFSZ, old_handler);
  CHECK(message.find("File too large") != std::string::npos);
  CHECK(message.find("unchanged") != std::string::npos);

  CHECK(bytes_of(path) == before);
  CHECK(folder.count() == 1);
}

TEST_CASE("hostile files are refused with a reason, before anything is allocated") {
  const Folder folder;
  const std::string path = folder.file("hostile");
  const auto refused = [&](const std::string& bytes, const char* reason) {
    CAPTURE(reason);
    write_bytes(path, bytes);
    CHECK_THROWS_WITH_AS(load_safetensors(path), doctest::Contains(reason), Error);
    CHECK_THROWS_WITH_AS(list_safetensors(path), doctest::Contains(reason), Error);
  };
  const auto header = [&](const std::string& json, const char* reason, size_t data = 16) {
    refused(with_length(json, std::string(data, '\0')), reason);
  };
  const auto tensor = [&](const std::string& fields, const char* reason, size_t data = 16) {
    header("{\"t\":{" + fields + "}}", reason, data);
  };

  CHECK_THROWS_WITH_AS(load_safetensors(folder.file("absent")), doctest::Contains("No such file"),
                       Error);
  CHECK_THROWS_WITH_AS(load_safetensors(folder.file(".")), doctest::Contains("not a regular file"),
                       Error);
  refused("", "has 0 bytes");
  refused("1234567", "has 7 bytes");
  refused(std::string(8, '\xff'), "says its header has 18446744073709551615 bytes");
  refused(std::string("\x20\0\0\0\0\0\0\0{}", 10), "says its header has 32 bytes");
  refused(std::string(8, '\0'), "does not start with an object");
  header("[1,2]", "does not start with an object");
  header("{\"t\":", "not JSON");
  header("{\"t\":\xff}", "not JSON");
  header("{\"t\":" + std::string(100000, '[') + std::string(100000, ']') + "}",
         "nested too deeply");
  header(R"({"t":1,"t":2})", "names \"t\" twice");
  header(R"({"t":7})", "does not consist of");
  header(R"({"__metadata__":{"a":1}})", "is not a string", 0);
  header(R"({"__metadata__":3})", "is not an object", 0);
  header("{}", "belong to no tensor");

  tensor(R"("dtype":"F32","shape":[4])", "does not consist of");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16],"more":1)", "does not consist of");
  tensor(R"("dtype":"F16","shape":[8],"data_offsets":[0,16])", "readable are F32");
  tensor(R"("dtype":5,"shape":[4],"data_offsets":[0,16])", "readable are F32");
  tensor(R"("dtype":"F32","shape":4,"data_offsets":[0,16])", "not a list");
  tensor(R"("dtype":"F32","shape":[-4],"data_offsets":[0,16])", "not made of sizes");
  tensor(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])", "not made of sizes");
  tensor(R"("dtype":"F32","shape":["4"],"data_offsets":[0,16])", "not made of sizes");
  tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,16])",
         "not made of sizes");
  tensor(R"("dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,16])",
         "not made of sizes");
  tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,16])", "9 dimensions");
  // 2^62 · 4 bytes and 2^32 · 2^32 wrap to 0.
  tensor(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])", "63 bits", 0);
  tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", "63 bits", 0);
  tensor(R"("dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])", "63 bits", 0);
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0])", "not two byte counts");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,-1])", "not two byte counts");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16.5])", "not two byte counts");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])", "not inside");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[4,20])", "not inside");
  tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615])", "not inside");
  tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,16])", "needs 12 bytes");
  tensor(R"("dtype":"F32","shape":[1000000000000],"data_offsets":[0,16])", "needs 4000000000000");
  tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])", "belong to no tensor");
  tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,16])", "belong to no tensor");

  const std::string first = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  header(first + R"("b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}})", "overlaps");
  header(first + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "overlaps");
  header(first + R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})",
         "belong to no tensor");

  // The same header, told truly, is read.
  write_bytes(path, with_length(first + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
                                std::string(16, '\0')));
  CHECK(load_safetensors(path).tensors.size() == 2);
  // A truncated good file.
  const std::string good = bytes_of(kPythonFile);
  for (size_t length : {size_t{0}, size_t{9}, size_t{200}, good.size() - 1}) {
    write_bytes(path, good.substr(0, length));
    CHECK_THROWS_AS(load_safetensors(path), Error);
  }
  // Bytes other than 0 and 1 are true.
  write_bytes(path, with_length(R"({"m":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})",
                                std::string("\x02\0\xff", 3)));
  CHECK(load_safetensors(path).tensors.at("m").to_vector<double>() == std::vector<double>{1, 0, 1});
}

}  // namespace macgrad
