// A task as the spans of one kind meet it: those whose keys are rebuilt from what is stored, and those whose rebuilt
// keys are kept (TokenSpan::rebuilt). In either kind, RoPE that was applied when keys were stored may lag.
#pragma once

#include <xquant/attention/task.hpp>
#include <xquant/backend/key_columns.hpp>
#include <xquant/backend/scalar/lag.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

/// Whether keys whose stored RoPE lags stay as they are, and the queries are turned back: where they are few, and may
/// meet codes, or are absorbed.
constexpr bool turns_queries(const AttendTask& task) noexcept {
    return task.queries() <= direct_queries || absorbs_keys(task);
}

/// The task as spans with rebuilt keys meet it: K of a head is Dh channels of the span's key stream, after its norm and
/// RoPE.
constexpr AttendTask task_of_rebuilt_keys(const AttendTask& given) noexcept {
    AttendTask out = given;
    out.key = given.rebuilt;
    out.rope = {};
    out.stored_rope = given.rebuilt_lags ? given.rope : RopeView{};
    out.shared_channels = 0;
    out.rules.key_norm = nullptr;
    return out;
}

/// Floats for the queries [queries, Dh] that are turned back by the lag of a span of one kind.
constexpr std::size_t turned_floats(const AttendTask& task) noexcept {
    return task.stored_rope.pairs > 0 && turns_queries(task) ? task.queries() * task.head_dim : 0;
}

/// A task, and the same with the queries that the keys of one span after the other meet.
class SpanReader {
public:
    /// `room`: turned_floats(task) floats.
    SpanReader(const AttendTask& task, float* room) noexcept : given_(task), turned_(task), room_(room) {}

    [[nodiscard]] const AttendTask& given() const noexcept { return given_; }
    [[nodiscard]] const AttendTask& turned() const noexcept { return turned_; }
    [[nodiscard]] const LagAngles& lag() const noexcept { return lag_; }

    /// Goes to a span. Whether it lags by something else than the one before.
    template <class Backend>
    bool move_to(Backend tag, const TokenSpan& span) noexcept {
        if (span.rope_lag == lag_.lag()) return false;
        lag_.move_to(given_.stored_rope, span.rope_lag);
        if (turns_queries(given_)) turned_ = turn_queries(tag, given_, lag_, room_);
        return true;
    }

private:
    AttendTask given_, turned_;
    LagAngles lag_;
    float* room_;
};

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
