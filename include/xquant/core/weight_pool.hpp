// The matrices of one layer's plan, kept as Options::weights says: one block of entries, and for 8 bits their scales.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include <xquant/error.hpp>
#include <xquant/projection/weights.hpp>
#include <xquant/storage/page.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

template <class T>
using WeightVector = LedgerVector<T, Purpose::weights>;

/// Matrices are rounded as they come, one behind the other. Groups of 8-bit entries may have entries of two matrices.
class WeightPool {
public:
    /// Room for so many entries. Throws std::bad_alloc, budget_error.
    WeightPool(Ledger& ledger, WeightType type, std::size_t count)
        : type_(type),
          entries_(count * size_of(type), LedgerAllocator<std::byte, Purpose::weights>(ledger)),
          scales_(groups(type, count), LedgerAllocator<float, Purpose::weights>(ledger)) {}

    /// Bytes of a pool of so many entries.
    static constexpr std::size_t bytes(WeightType type, std::size_t count) noexcept {
        return count * size_of(type) + groups(type, count) * sizeof(float);
    }

    /// A matrix; empty: none. There is room for it. Its last entries are read after finish() alone.
    WeightMatrix keep(const std::vector<float>& matrix) noexcept {
        if (matrix.empty()) return nullptr;
        WeightMatrix out;
        out.type = type_;
        out.first = used_;
        out.scales = scales_.data();
        std::byte* const to = entries_.data() + used_ * size_of(type_);
        out.entries = to;
        used_ += matrix.size();
        if (type_ == WeightType::q8) {
            for (const float value : matrix) add(value);
        } else if (type_ == WeightType::f16) {
            out.factor = factor_of(matrix);
            const float inverse = 1.0F / out.factor;
            auto* const halves = reinterpret_cast<f16*>(to);
            for (std::size_t i = 0; i < matrix.size(); ++i) halves[i] = to_f16(matrix[i] * inverse);
        } else if (type_ == WeightType::bf16) {
            std::transform(matrix.begin(), matrix.end(), reinterpret_cast<bf16*>(to),
                           [](float value) { return to_bf16(value); });
        } else {
            std::memcpy(to, matrix.data(), matrix.size() * sizeof(float));
        }
        return out;
    }

    /// After the last matrix: closes a group that is not full.
    void finish() noexcept {
        if (pending_ > 0) close_group();
    }

    [[nodiscard]] WeightType type() const noexcept { return type_; }
    /// Everything that the matrices point into.
    [[nodiscard]] std::span<const std::byte> entries() const noexcept { return {entries_.data(), entries_.size()}; }
    [[nodiscard]] std::span<const float> scales() const noexcept { return {scales_.data(), scales_.size()}; }

private:
    static constexpr std::size_t groups(WeightType type, std::size_t count) noexcept {
        return type == WeightType::q8 ? (count + weight_group - 1) / weight_group : 0;
    }

    static float largest_of(std::span<const float> values) noexcept {
        float largest = 0;
        for (const float value : values) largest = (std::max)(largest, std::abs(value));
        return largest;
    }

    /// The power of two that brings the largest entry to 2^14 .. 2^15. Entries down to 2^-28 of it keep 11 bits.
    static float factor_of(const std::vector<float>& matrix) noexcept {
        const float largest = largest_of(matrix);
        // Beyond these powers, the factor or its inverse would be no normal f32.
        return largest > 0 ? std::ldexp(1.0F, std::clamp(std::ilogb(largest) - 14, -125, 125)) : 1.0F;
    }

    void add(float value) noexcept {
        group_[pending_++] = value;
        if (pending_ == weight_group) close_group();
    }

    void close_group() noexcept {
        const float scale = largest_of({group_.data(), pending_}) / 127.0F;
        auto* const to = reinterpret_cast<std::uint8_t*>(entries_.data()) + closed_ * weight_group;
        for (std::size_t i = 0; i < pending_; ++i) {
            const float code = scale > 0 ? std::clamp(std::nearbyint(group_[i] / scale), -127.0F, 127.0F) : 0.0F;
            to[i] = static_cast<std::uint8_t>(static_cast<int>(code) + 128);
        }
        scales_[closed_++] = scale;
        pending_ = 0;
    }

    WeightType type_;
    WeightVector<std::byte> entries_;
    WeightVector<float> scales_;
    std::array<float, weight_group> group_{};
    std::size_t used_ = 0,  ///< entries that matrices have taken
        pending_ = 0,       ///< entries of the group that is not full
        closed_ = 0;        ///< groups that have their scale
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
