// What the pages' code may take for granted: the headers, and objects that a marker of a page asks for by name.
//
//     <!-- compile: statements; with: model, cache -->      auto& model = docs::model(); auto& cache = docs::cache();
//
// Code of pages is compiled and not run, so these functions have no bodies. check_code.py reads their names here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#if __has_include(<Eigen/Core>)
#include <xquant/projection/joint_svd.hpp>
#include <xquant/projection/svd.hpp>
#include <xquant/registry_svd.hpp>
#endif
#if __has_include(<xxhash.h>)
#include <xquant/persistence.hpp>
#endif
#include <xquant/registry.hpp>
#include <xquant/serving/huge_pages.hpp>
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

namespace docs {

using AnyCache = xquant::XCache<xquant::Requantizable<xquant::Uniform<4>, xquant::Uniform<2>>>;

// Models and their weights
xquant::Model& model();
xquant::Layer& layer();
xquant::LayerShape& shape();
xquant::MatrixView& w_k();
xquant::MatrixView& w_v();
xquant::MatrixView& W_DKV();
xquant::MatrixView& W_KR();
xquant::MatrixView& W_UK();
xquant::MatrixView& W_UV();
const float*& gain();

// Caches, sequences and steps
AnyCache& cache();
AnyCache::Step& step();
xquant::Options& options();
xquant::Sequence& s();
xquant::Sequence& a();
xquant::Sequence& b();
xquant::Sequence& c();
xquant::Sequence& sequence();
std::vector<xquant::Sequence>& sequences();
std::vector<std::size_t>& parents();
xquant::PrefixIndex& index();
std::span<const std::int32_t>& prompt();
std::string& path();

// Rows and numbers; the letters are those of docs/glossary.md
const float*& x();
const float*& k();
const float*& v();
const float*& q();
float*& out();
std::size_t& n();
std::size_t& D();
std::size_t& H();
std::size_t& Dh();
std::size_t& layers();

/// A cudaStream_t.
void*& stream();

/// What a line of a block of types is put to: a cache is made of it where it is one, so that its policies are checked.
template <class T>
void use() {
    static_assert(sizeof(T) > 0);
    if constexpr (std::is_constructible_v<T, const xquant::Model&>) static_cast<void>(T(model()));
}

}  // namespace docs
