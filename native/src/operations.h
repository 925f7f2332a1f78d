/* All operations of a target for one SIZE of element. */
#include WORDS

#include "expand.h"
#include "compress.h"
#include "scan.h"
