// Keys whose stored RoPE lags: stored with the RoPE of position p and moved by m afterwards, they should have that of
// p + m. A tile of keys is turned by m; where queries are few, or meet codes, they are turned back instead:
//
//     q . R(m) k = (R(-m) q) . k
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <xquant/attention/task.hpp>
#include <xquant/backend/scalar/rope.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// The angles of a lag.
class LagAngles {
public:
    std::array<float, max_pairs> cosines, sines;

    [[nodiscard]] std::int64_t lag() const noexcept { return lag_; }
    void move_to(const RopeView& rope, std::int64_t lag) noexcept {
        rope_angles(rope, lag, cosines.data(), sines.data());
        lag_ = lag;
    }

private:
    std::int64_t lag_ = 0;
};

/// Turns a channel-major tile of keys by the lag.
inline void turn_keys(scalar, const RopeView& rope, const LagAngles& angles, Tile keys) noexcept {
    for (std::size_t j = 0; j < rope.pairs; ++j) {
        float* XQUANT_RESTRICT a = keys.data + rope.first(j) * keys.stride;
        float* XQUANT_RESTRICT b = keys.data + rope.second(j) * keys.stride;
        const float cosine = angles.cosines[j], sine = angles.sines[j];
        for (std::size_t t = 0; t < keys.tokens; ++t) {
            const float x = a[t], y = b[t];
            a[t] = x * cosine - y * sine;
            b[t] = x * sine + y * cosine;
        }
    }
}

/// The task with its queries turned back by the lag; they lie in `to` [queries, Dh].
inline AttendTask turn_queries(scalar tag, const AttendTask& task, const LagAngles& angles, float* to) noexcept {
    AttendTask out = task;
    if (angles.lag() == 0) return out;
    const std::size_t dh = task.head_dim;
    for (std::size_t i = 0; i < task.queries(); ++i) {
        std::copy_n(task.query(i), dh, to + i * dh);
        apply_rope(tag, task.stored_rope, angles.cosines.data(), angles.sines.data(), -1.0F, to + i * dh);
    }
    out.q = to;
    out.q_stride = task.queries_per_kv * dh;
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
