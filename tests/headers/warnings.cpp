// Compiled with warnings as errors: the code of caches, of their files and of the schemes. Eigen is left out, which
// takes the compiler as long again.
#define XQUANT_SVD_COMPILED
#include <xquant/instantiate.hpp>
#include <xquant/persistence.hpp>
#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

using namespace xquant;

XQUANT_COMPILE_CACHE(backend::best);
template class xquant::XCache<>;
template class xquant::XCache<Uniform<4, 64>, Layout<PerToken>, CrossLayer<Off>,
                              Projection<KeyValue<AfterRope, Hadamard>>>;
template class xquant::XCache<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>;
template class xquant::XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Delta>>;

std::vector<Sequence> again(Cache<>& cache, const std::vector<Sequence>& sequences, const char* path) {
    save(cache, sequences, path);
    return load(cache, path).sequences;
}
