// The smallest translation run that learns something, for the tests of the experiment.
#pragma once

#include <omp.h>

#include <string>

#include "macgrad/experiments/multi30k/settings.h"

namespace macgrad::testing {

/// One thread while alive: models this small gain nothing from more. A run sets the number itself.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads_); }

 private:
  int threads_ = omp_get_max_threads();
};

/// On the toy corpus.
inline experiments::Multi30kSettings tiny(const std::string& attention = "softmax") {
  experiments::Multi30kSettings s;
  make_toy(s);
  s.toy_train_pairs = 200;
  s.toy_valid_pairs = 20;
  s.d_model = 16;
  s.heads = 2;
  s.ffn = 32;
  s.features = 32;
  s.batch_tokens = 256;
  s.warmup = 10;
  s.epochs = 2;
  s.attention = attention;
  s.ppsbn = attention == "rmfa";
  s.common.threads = 1;
  return s;
}

}  // namespace macgrad::testing
