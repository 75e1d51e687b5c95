// The host stands in for it.
#pragma once
#include "cuda_on_host.h"
