// Whether the operands of an instruction fit each other, so that no kernel reads or writes
// beyond one of them.
#pragma once

#include "frame.h"

namespace ridgeline {

bool shapes_agree(const Program& p, const Instr& i, const std::vector<const Weight*>& weights,
                  const std::vector<Vector>& vectors);

}  // namespace ridgeline
