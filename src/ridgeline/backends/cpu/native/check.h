// Checks of batch values before a step: what would index outside memory is refused. Throws
// std::invalid_argument.
#pragma once

#include "frame.h"

namespace ridgeline {

void check_header(const Program& p, const uint8_t* batch, int64_t bytes);
void check_copies(const Frame& f);
void check_hold(const Frame& f);
void check_embedding(const Instr& i, const Frame& f);
void check_take_rows(const Instr& i, const Frame& f);
void check_rotary(const Instr& i, const Frame& f);
void check_attention(const Instr& i, const Frame& f);
void check_sample(const Instr& i, const Frame& f);

}  // namespace ridgeline
