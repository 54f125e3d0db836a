// xquant's RoPE from the numbers of ggml's.
#pragma once

#include <xquant/model.hpp>

#include "trace.hpp"

namespace adapter {

/// Empty: the operation is one that xquant has. Else what it has in its place, as a part of a sentence.
std::string foreign_rope(const RopeOperation& rope);

/// Frequencies [n_dims / 2] with frequency scaling, YaRN and factors in them. No frequencies where there is no
/// operation.
xquant::Rope rope_of(const RopeOperation& rope);

}  // namespace adapter
