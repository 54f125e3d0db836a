/// `xquant-llm inspect`: what a saved cache holds, and whether it is as it was written.
#pragma once

#include <string>

namespace llm {

/// What inspect prints, as text and as JSON. Both throw what xquant::inspect throws.
struct Inspection {
    std::string text, json;
    bool intact = false;
};
Inspection inspect_file(const std::string& path);

/// The text to stdout, and the JSON to a file where `json` names one. Returns whether every page is intact.
/// Throws llm::Error, and what xquant::inspect throws.
bool inspect(const std::string& path, const std::string& json);

}  // namespace llm
