/// How far answers of quantized caches may be apart. A bound that is a number of its own can be so wide that zeros,
/// or the answers to something else, pass it. These follow from what a scheme's codes alone do to its answers.
///
/// Distances are lengths of vectors: |found - expected| / |expected|. 0 where both are equal, 1 where zeros were
/// found, about 1.4 where the answers belong to other rows.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "support/feed.hpp"

namespace test {

/// Sums up over many values. A value that is not finite makes the distance infinite.
class RelativeDistance {
public:
    void add(double found, double expected) {
        off_ += (found - expected) * (found - expected);
        size_ += expected * expected;
    }
    [[nodiscard]] double value() const { return std::isfinite(off_) && size_ > 0 ? std::sqrt(off_ / size_) : HUGE_VAL; }

private:
    double off_ = 0, size_ = 0;
};

/// Chooses every page of requantize, those that are not full as well.
inline constexpr auto every_page = [](const xquant::PageChoice&) { return true; };

/// Of all layers; infinite where the sizes differ.
double relative_distance(const Outputs& found, const Outputs& expected);

/// Of the answers to the last `rows` tokens of two sequences of the same model.
double relative_distance(const Feed& found, const Feed& expected, std::size_t rows);

/// The answers to rows first .. first + rows of those that a feed has.
Outputs answers(const Feed& feed, std::size_t first, std::size_t rows);

/// What the codes of a scheme do to its answers when it reads nothing else: the distance of 170 answers to attention
/// over the same rows in f32, each of them strictly from codes.
/// @param fewer  pages are requantized before the last 10 answers, and these alone count
double own_error(const Scheme& scheme, const xquant::Model& model, bool fewer = false);

/// How far two sequences of the same tokens may be apart where groups were cut at other places, or where one has rows
/// in f16 that the other has in codes: each is off by its own error. Throws std::logic_error if zeros would pass.
double tolerance(const Scheme& scheme, const xquant::Model& model, bool fewer = false);

/// A bound from an own error, and whether it says something.
double tolerance_of(double own_error);

}  // namespace test
