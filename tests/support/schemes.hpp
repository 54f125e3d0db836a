/// Every kind of cache that the library ships, by name, behind one type: tests run over the list, and compile it once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compiled/best.hpp"

#include "support/format.hpp"

namespace test {

using Cache = xquant::Cache<xquant::backend::best>;
using StoredLayers = std::vector<std::vector<StoredStream>>;

struct Scheme {
    std::string name;
    std::shared_ptr<Cache> (*make)(const xquant::Model&, const xquant::Options&);
    xquant::Bytes (*predict)(const xquant::Model&, const xquant::Options&, std::size_t tokens);
    std::size_t (*predict_accumulator)(const xquant::Model&, const xquant::Options&, std::size_t tokens);
    /// How docs/format.md has the coded rows of each layer.
    StoredLayers (*stored)(const xquant::Model&);
    bool exact = false;        ///< f32 rows: attention is plain attention to rounding
    bool cross_layer = false;  ///< layers from the third on depend on those below
    bool per_channel = false;  ///< rows are coded 128 at a time
};

/// Models need kv_heads * head_dim at most half the width; for cross-layer schemes more than two layers.
const std::vector<Scheme>& schemes();

/// The one of that name.
const Scheme& scheme(const std::string& name);

}  // namespace test
