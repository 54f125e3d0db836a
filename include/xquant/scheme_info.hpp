// What is known of a scheme that has a name: the plain types of registry.hpp, and a line of text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include <xquant/model.hpp>

namespace xquant {

/// What a scheme reads of a Layer beside its shape, weights and rules.
enum class Needs : unsigned char {
    nothing,
    mean,         ///< Layer::mean; without it nothing is subtracted
    calibration,  ///< Layer::calibration; without it the constructor throws shape_error
    statistics    ///< Layer::statistics; without them the constructor throws value_error
};

/// A scheme that make_cache knows.
struct SchemeInfo {
    /// One size of its groups.
    struct Form {
        std::size_t group = 0;      ///< values that share a scale; 0: rows are not quantized
        double bits_per_value = 0;  ///< scales, zeros and outliers included
    };

    std::string name;                               ///< "kivi4"; with a group that is not the first: "kivi4:group=64"
    std::string summary;                            ///< what is stored, in a line
    std::vector<Form> forms;                        ///< the default first
    Needs needs = Needs::nothing;                   ///< what it reads of a Layer besides
    std::vector<LayerInput> inputs{LayerInput::x};  ///< what an engine may hand over; X always
    /// Whether its bits are an average, divided among layers by what errors cost there; with ":uniform" behind the name
    /// all layers have as many.
    bool divides_bits = false;
    bool reads_w_k = false;  ///< Layer::w_k, even where K and V are handed over
};

inline namespace XQUANT_ABI_NS {

/// "kivi4            4.25 bits   K before RoPE per channel, V per token; groups of 128, 64, 32"
inline std::string to_string(const SchemeInfo& scheme) {
    std::array<char, 64> head{};
    std::snprintf(head.data(), head.size(), "%-16.24s %5.2f bits   ", scheme.name.c_str(),
                  scheme.forms.front().bits_per_value);
    std::string line = head.data() + scheme.summary;
    for (std::size_t i = 0; i < scheme.forms.size() && scheme.forms.front().group > 0; ++i) {
        line += (i == 0 ? "; groups of " : ", ") + std::to_string(scheme.forms[i].group);
    }
    return line;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
