// Caches and the SVD, compiled once (xquant/instantiate.hpp).
#include "compiled/best.cpp"
#include "compiled/svd.cpp"
