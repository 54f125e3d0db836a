/// The library's caches by name, one entry for each group size. They stand in several files since they take long to
/// compile; what all of them have in common is compiled once, in library_cache.cpp.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>
#include <xquant/xquant.hpp>

#include "schemes.hpp"

// Not here: its members are library_cache.cpp's.
extern template class xquant::detail::CacheBase<xquant::backend::best>;

namespace llm {

using LibraryBase = xquant::detail::CacheBase<xquant::backend::best>;

struct LibraryScheme {
    std::string_view name;
    std::size_t group;  // values that share a scale; 0: the format's own, or none
    std::shared_ptr<LibraryBase> (*make)(const xquant::Model&, const xquant::Options&);
    Needs needs = Needs::nothing;
};

void add_key_value_and_x_schemes(std::vector<LibraryScheme>& all);
void add_svd_schemes(std::vector<LibraryScheme>& all);
void add_rank_schemes(std::vector<LibraryScheme>& all);

/// A shared_ptr, since it remembers how to destroy the whole cache.
template <class Cache>
std::shared_ptr<LibraryBase> make_library_cache(const xquant::Model& model, const xquant::Options& options) {
    return std::make_shared<Cache>(model, options);
}

}  // namespace llm
