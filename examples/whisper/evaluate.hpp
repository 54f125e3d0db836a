/// Schemes beside the exact caches, on what Whisper's decoder predicts along its own transcripts.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace whisper {

struct EvaluateOptions {
    std::string data;  // a file of tools/whisper
    std::vector<std::string> self_schemes{"kv8", "kivi4", "x4", "x4_rot", "x3_rot"}, cross_schemes = self_schemes;
    std::size_t sinks = 4, cross_sinks = 0;  // first tokens, and first frames, that stay exact
    std::size_t calibrate = 0;               // of so many windows the last one is learnt from, not scored; 0: none
    std::size_t windows = 0;                 // score at most so many; 0: all that are there
    std::size_t threads = 0;                 // 0: as many as the machine has
};

/// Prints a table for self attention, with exact cross attention, and one for cross attention, with exact self
/// attention. Throws llm::Error.
void evaluate(const EvaluateOptions& options);

/// The library's schemes that need nothing but weights and statistics, for a help text.
std::string schemes_help();

}  // namespace whisper
