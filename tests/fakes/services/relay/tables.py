import sqlalchemy as sa

from chassis.tables import add_frame_tables

metadata = sa.MetaData()
add_frame_tables(metadata)
