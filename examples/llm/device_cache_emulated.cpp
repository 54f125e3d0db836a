#include "support/compiled/emulated.hpp"

#include "device_cache_of.hpp"

namespace llm {

std::unique_ptr<AttentionCache> make_emulated_cache(std::string_view scheme, const xquant::Model& model,
                                                    const xquant::Options& options, const DeviceShape& shape) {
    return make_device_cache<xquant::backend::EmulatedDevice>(scheme, model, options, shape);
}

}  // namespace llm
