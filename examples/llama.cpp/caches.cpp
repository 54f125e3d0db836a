// Caches, the schemes that have a name, and the SVD, compiled once (xquant/instantiate.hpp).
#include "compiled/best.cpp"
#include "compiled/registry.cpp"
#include "compiled/svd.cpp"
