// One step of a cache whose pages lie on a device. It has the verbs and the plans of core/step.hpp; x, q and out are
// pointers to device memory, and nothing waits for the device.
//
//     begin  plans, allocates pages, and copies the step's tables to the device: once, for all layers
//     append   Project, FinishRow, (Mix,) Gather, (Difference,) Encode, (EncodeWithFeedback,) (Accumulate)
//     attend   (Convert or Absorb,) Attend, Finish
//
// Rows that are not finite are found when the device gets to them: XCache::take_bad_rows says whether there were some.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <xquant/core/device/step_tables.cuh>
#include <xquant/core/step_base.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// A step over one or several sequences. Move-only; destroying it without commit() leaves the cache as it was. One step
/// at a time: steps share the cache's workspace.
template <class Device>
class DeviceStep : public StepBase {
public:
    DeviceStep(Core& core, DeviceState<Device>& state, std::span<const StepPart> parts)
        : StepBase(core, parts), state_(&state) {
        open();
    }
    DeviceStep(DeviceStep&&) noexcept = default;
    DeviceStep& operator=(DeviceStep&&) = delete;
    ~DeviceStep() { release(); }

    /// Encodes all rows of a sequence outside its window, unfinished groups included.
    static void seal(Core& core, DeviceState<Device>& state, Slot& slot) {
        DeviceStep step(core, state, slot);
        for (std::size_t layer = 0; layer < core.layers().size(); ++layer) step.write_rows(layer);
        step.next_ = core.layers().size();
        step.commit();
    }

    /// As Step::append; x [n, D] lies on the device, and has been read when the device gets there.
    void append(std::size_t layer, const MatrixView& x, ExecutorRef) {
        using namespace backend::gpu;
        const PreparedLayer& prepared = expects_next(layer, {x, {}, {}}, false);
        const PageGroupTables& page_group = page_groups_[prepared.page_group];
        const LayerTable* table = state_->layer(layer);
        const auto n = static_cast<unsigned>(total_), streams = static_cast<unsigned>(prepared.encoders.size());
        const std::size_t widest = widest_rows(prepared).given;
        Device& device = state_->device();
        const DeviceRows input{x.data, x.stride, x.type};
        lost_ = true;  // until all kernels are launched
        const auto columns = static_cast<unsigned>((widest + project_columns - 1) / project_columns);
        const unsigned row_blocks = (n + project_rows - 1) / project_rows;
        device.template launch<Project>(columns, row_blocks, streams, project_shared_bytes, table, page_group.step,
                                        input);
        device.template launch<FinishRow>(n, streams, 1U, sizeof(float) * (2 * widest + 1), table, page_group.step);
        std::size_t tiles = 0;
        for (const StreamEncoder& encoder : prepared.encoders) tiles = (std::max)(tiles, mix_tiles(encoder));
        if (tiles > 0) {
            device.template launch<Mix>(static_cast<unsigned>(tiles), row_blocks, streams, project_shared_bytes, table,
                                        page_group.step);
        }
        write_rows(layer);
        lost_ = false;
        pass(layer);
    }

    /// Caches on a device have no layers that take K and V: this throws state_error.
    void append_kv(std::size_t layer, const MatrixView& k, const MatrixView& v, ExecutorRef) {
        expects_next(layer, {{}, k, v}, true);
    }

    /// As Step::attend; q [n, H * Dh] and out [n, H * Dh] (f32) lie on the device.
    void attend(std::size_t layer, const MatrixView& q, float* out, Visibility visibility, std::size_t out_stride,
                ExecutorRef) {
        using namespace backend::gpu;
        const PreparedLayer& prepared = expects_queries(layer, q, out, visibility, out_stride);
        expects<state_error>(layer + 1 == next_, "attend: layer ", layer, ", but the layer that was appended last is ",
                             next_ - 1, ", and a device attends to that one alone");
        expects<state_error>(visibility == Visibility::causal, "attend, layer ", layer,
                             ": a device serves Visibility::causal alone");
        Device& device = state_->device();
        const LayerForm form = state_->form(layer);
        const DeviceRows given{q.data, q.stride, q.type};
        const auto n = static_cast<unsigned>(total_);
        const float* queries = static_cast<const float*>(q.data);
        std::size_t q_stride = q.stride;
        if (form.absorbs_queries || q.type != DType::f32) {
            auto* made = reinterpret_cast<float*>(state_->queries.data());
            queries = made;
            if (form.absorbs_queries) {
                device.template launch<Absorb>(n, static_cast<unsigned>(prepared.shape.heads), 1U, 0,
                                               state_->layer(layer), given, made);
                q_stride = prepared.shape.heads * prepared.keys.front().width;
            } else {
                device.template launch<Convert>(n, 1U, 1U, 0, given, q.cols, made);
                q_stride = q.cols;
            }
        }
        with_size<typename Device::machine>(
            prepared.shape.head_dim, [&]<unsigned Size>(std::integral_constant<unsigned, Size>) {
                form.with_products([&]<Products How>(std::integral_constant<Products, How>) {
                    attend_with<Size, How, false>(prepared, layer, queries, q_stride, given, out, out_stride);
                    attend_with<Size, How, true>(prepared, layer, queries, q_stride, given, out, out_stride);
                });
            });
    }

    /// As Step::commit. The device may be behind; what follows in its stream sees the step.
    void commit() {
        StepBase::commit();
        state_->busy = false;
    }
    void commit(std::span<const std::size_t> kept) {
        StepBase::commit(kept);
        state_->busy = false;
    }

private:
    /// For seal: no new tokens.
    DeviceStep(Core& core, DeviceState<Device>& state, Slot& slot) : StepBase(core, slot), state_(&state) { open(); }

    void open() {
        expects<state_error>(!state_->busy,
                             "begin: a device runs one step of a cache at a time, and another one is under way");
        expects<state_error>(tree_.empty(), "begin: a device does not serve StepPart::parents");
        expects<state_error>(named_.empty(), "begin: a device does not serve StepPart::rows");
        page_groups_ = tables().make(total_);
        // From here on nothing throws.
        begin();
        state_->busy = true;
    }
    void release() noexcept {
        if (is_active() && begun_) state_->busy = false;
    }

    [[nodiscard]] StepTables<Device, Plans> tables() { return {*core_, *state_, parts_, plans_, sums_}; }

    /// Rows of a layer go into their pages.
    void write_rows(std::size_t layer) {
        using namespace backend::gpu;
        const PreparedLayer& prepared = core_->layers()[layer];
        const PageGroupTables& page_group = page_groups_[prepared.page_group];
        const auto streams = static_cast<unsigned>(prepared.encoders.size());
        const auto [widest, widest_coded] = widest_rows(prepared);
        Device& device = state_->device();
        const LayerTable* table = state_->layer(layer);
        if (page_group.gathered > 0) {
            constexpr unsigned groups = page_slots / Gather::warps;
            device.template launch<Gather>(page_group.writes, streams, groups, 0, table, page_group.step, widest);
            if (prepared.role == CrossRole::difference) {
                device.template launch<Difference>(page_group.writes, groups, 1U, 0, table, page_group.step, widest,
                                                   widest_coded);
            }
        }
        if (page_group.writes > 0) {
            const unsigned shares = page_group.most_rows > 8 ? 16U : 1U;
            device.template launch<Encode>(page_group.writes, streams, shares, 0, table, page_group.step, widest,
                                           widest_coded, shares);
            if (state_->form(layer).feeds_back) {
                const auto feedback = page_group.feedback_of(*core_, layer, device.blocks_at_once());
                device.template launch<EncodeWithFeedback>(page_group.writes, streams, feedback.shares,
                                                           feedback_shared_bytes, table, page_group.step, widest,
                                                           widest_coded, feedback.shares, feedback.floats);
            }
        }
        if (prepared.role != CrossRole::none && page_group.sums > 0) {
            device.template launch<Accumulate>(page_group.sums, page_slots / Accumulate::warps, 1U,
                                               sizeof(float) * Accumulate::warps * widest, table, page_group.step);
        }
    }

    /// The blocks of one kernel.
    template <unsigned Size, backend::gpu::Products How, bool Prefill>
    void attend_with(const PreparedLayer& prepared, std::size_t layer, const float* q, std::size_t q_stride,
                     const backend::gpu::DeviceRows& given, float* out, std::size_t out_stride) {
        using namespace backend::gpu;
        using Kernel = Attend<Size, How, Prefill>;
        const PageGroupTables& page_group = page_groups_[prepared.page_group];
        const unsigned blocks = Prefill ? page_group.prefill : page_group.decode;
        if (blocks == 0) return;
        const StepTable step = page_group.step_of(Prefill, prepared.shape.kv_heads, Size);
        const auto kv_heads = static_cast<unsigned>(prepared.shape.kv_heads);
        constexpr std::size_t shared = Kernel::template On<typename Device::machine>::shared_bytes + sizeof(DeviceTask);
        Device& device = state_->device();
        device.template launch<Kernel>(blocks, kv_heads, 1U, shared, state_->layer(layer), step, q, q_stride, given);
        device.template launch<Finish<Size>>(blocks, kv_heads, step.queries, sizeof(float) * Size, state_->layer(layer),
                                             step, out, out_stride);
    }

    DeviceState<Device>* state_;
    std::vector<PageGroupTables> page_groups_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
