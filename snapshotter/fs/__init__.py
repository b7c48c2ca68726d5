"""The file systems through which containers see layers: EROFS over files that FUSE serves."""
