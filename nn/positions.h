// Positions: vectors added to embeddings so that attention can tell places apart.
#pragma once

#include <vector>

#include "macgrad/nn/module.h"

namespace macgrad::nn {

enum class PositionKind { sinusoidal, learned, none };
/// "sinusoidal", "learned", "none"; an Error lists them.
PositionKind parse_positions(const std::string& name);

/// Rows 0 … length-1 of sin(t/10000^(2i/C)), cos(t/10000^(2i/C)) in columns 2i, 2i+1 (Vaswani et
/// al. 2017, section 3.5). float32 (length, C).
Tensor sinusoidal_positions(int64_t length, int64_t width);

class Positions : public Module {
 public:
  /// Learned vectors exist for max_length places (normal, deviation 1/√C); sinusoidal ones grow
  /// with need.
  Positions(Module* parent, std::string name, PositionKind kind, int64_t max_length, int64_t width,
            ModelRandom& random);
  /// x (B, T, C) plus the vectors of places start … start+T-1. Beyond max_length learned positions
  /// throw an Error.
  Variable forward(const Variable& x, int64_t start = 0) const;

  std::optional<Parameter> weight;  // (max_length, C), learned

 private:
  PositionKind kind_;
  int64_t width_;
  // Sinusoidal, of every dtype and device asked for. Those that have been outgrown stay: a recorded
  // step (core/step_graph.h) goes on reading the one it was recorded with.
  mutable std::vector<Tensor> tables_;
};

}  // namespace macgrad::nn
