// Compiling caches once. A cache of a backend is some 10 s of a compiler's time, in each translation unit that uses
// one; with
//
//     #include <xquant/instantiate.hpp>
//     XQUANT_EXTERN_CACHE(xquant::backend::best);     // in a header of yours, which every user of a cache includes
//     XQUANT_COMPILE_CACHE(xquant::backend::best);    // in one .cpp file
//
// it is paid once, whatever the number of schemes and files. All files need the same compiler flags: others have other
// functions (config.hpp), and the linker says so.
//
// Eigen, for the projections that need an SVD, is some 15 s more. Where XQUANT_SVD_COMPILED is defined the headers
// leave it out, and one .cpp file has
//
//     #include <xquant/projection/svd_basis.hpp>
//     XQUANT_COMPILE_SVD();
//
// The schemes that have a name are some 15 s as well. Where XQUANT_REGISTRY_COMPILED is defined <xquant/registry.hpp>
// and <xquant/registry_svd.hpp> leave them out, and one .cpp file without that definition has
//
//     #include <xquant/registry_svd.hpp>
//     XQUANT_COMPILE_REGISTRY();
//     XQUANT_COMPILE_REGISTRY_SVD();                  // where any file includes registry_svd.hpp
#pragma once

#include <xquant/cache.hpp>

#define XQUANT_EXTERN_CACHE(...) extern template class xquant::Cache<__VA_ARGS__>
#define XQUANT_COMPILE_CACHE(...) template class xquant::Cache<__VA_ARGS__>
#define XQUANT_COMPILE_SVD()                                                                                          \
    template xquant::Basis xquant::svd_basis<double>(const xquant::MatrixView&, std::size_t, std::size_t);            \
    template xquant::CommonBasis xquant::common_basis<double>(const std::vector<double>&, const std::vector<double>&, \
                                                              std::size_t)
#define XQUANT_COMPILE_REGISTRY()                                                      \
    template void xquant::detail::add_plain_presets<void>(xquant::detail::Registry&);  \
    template void xquant::detail::add_grouped_presets<128>(xquant::detail::Registry&); \
    template void xquant::detail::add_grouped_presets<64>(xquant::detail::Registry&);  \
    template void xquant::detail::add_grouped_presets<32>(xquant::detail::Registry&)
#define XQUANT_COMPILE_REGISTRY_SVD()                                                      \
    template void xquant::detail::add_grouped_svd_presets<128>(xquant::detail::Registry&); \
    template void xquant::detail::add_grouped_svd_presets<64>(xquant::detail::Registry&);  \
    template void xquant::detail::add_grouped_svd_presets<32>(xquant::detail::Registry&)
