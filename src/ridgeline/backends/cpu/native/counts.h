// Reading what the counting build has counted.
#pragma once

#include <array>
#include <map>
#include <string>

#include "count.h"

namespace ridgeline {

using Counts = std::array<int64_t, 6>;  // by Counted

// All counts since this was last asked, by op. Between two steps only.
std::map<std::string, Counts> take_counts();

}  // namespace ridgeline
