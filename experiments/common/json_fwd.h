// The JSON type of results, declared. Only what reads or writes JSON includes <nlohmann/json.hpp>,
// which takes seconds to compile.
#pragma once

#include <nlohmann/json_fwd.hpp>

namespace macgrad::experiments {

/// Ordered, so that settings appear as they were written.
using Json = nlohmann::ordered_json;

}  // namespace macgrad::experiments
